"""The robot side: fixed-rate bridge, safety, chunk scheduling, recorder, robots. The bridge runs without torch."""
