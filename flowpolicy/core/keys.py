"""Names of dataset and batch keys, and the conventions that go with them. Written once.

A dataset is one flat TensorDict of N time steps; a batch is a TensorDict of b windows.

=================  ==================  ==============  ====================================================
key                dataset shape       batch shape     meaning
=================  ==================  ==============  ====================================================
("obs", name)      (N, d)              (b, o, d)       observation *before* the action of the same row
"action"           (N, a)              (b, h, a)       action in environment units
"reward"           (N,)                               reward after the action
"mask"             (N,)                               0 only on true termination: bootstrapping stops
"terminal"         (N,)                               True on the last row of each trajectory
"episode"          (N,)                               number of the episode that the row belongs to
"valid"                                (b, h)          False where a window reaches past its episode's end
=================  ==================  ==============  ====================================================

Flow time: noise at t = 0, data at t = 1, velocity = data - noise; generation integrates upwards.
"""

OBS = "obs"
ACTION = "action"
REWARD = "reward"
MASK = "mask"
TERMINAL = "terminal"
EPISODE = "episode"
VALID = "valid"
