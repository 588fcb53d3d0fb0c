"""What moves an arm: the protocols that the bridge knows, an arm in NumPy, the client of the Franka arms."""
