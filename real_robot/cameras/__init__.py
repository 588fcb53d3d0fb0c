"""Cameras: replayed, of the twin, RealSense."""
