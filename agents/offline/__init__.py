"""Offline reinforcement learning: a policy that climbs a critic learned from the data."""
