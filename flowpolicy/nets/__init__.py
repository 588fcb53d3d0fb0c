"""Velocity and flow-map networks, encoders, EMA."""
