"""The robot side: fixed-rate bridge, safety, chunk scheduling, recorder, robots. The bridge runs without torch."""

from flowpolicy.core.moved import keep_importable

keep_importable()
