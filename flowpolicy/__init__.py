"""Offline RL and robot learning with flow-matching policies."""

__version__ = "0.1.0"
