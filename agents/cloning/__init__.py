"""Behaviour cloning: imitate the data."""
