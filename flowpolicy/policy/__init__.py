"""The deployable thing: contract, normaliser, network, solver."""
