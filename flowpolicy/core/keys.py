"""Names of dataset and batch keys, and the conventions that go with them. Written once.

A dataset is N time steps, a batch is b windows, both as :class:`flowpolicy.core.columns.Columns`. The keys below the
line are in batches of transitions only (:mod:`flowpolicy.data.transitions`); n is the number of rows that their return
sums.

=================  ==================  ==============  ====================================================
key                dataset shape       batch shape     meaning
=================  ==================  ==============  ====================================================
("obs", name)      (N, d)              (b, o, d)       observation *before* the action of the same row
"action"           (N, a)              (b, h, a)       action in environment units
"reward"           (N,)                (b, r)          reward after the action; 0 after the n-th row
"mask"             (N,)                (b,)            0 only on true termination: bootstrapping stops
"terminal"         (N,)                               True on the last row of each trajectory
"episode"          (N,)                               number of the episode that the row belongs to
"task"             (N,)                               which of the dataset's instructions it follows, if it has any
"valid"                                (b, h)          False where a window reaches past its episode's end
"previous"                             (b, h, a)       the h actions before the window, where they are asked for
"known"                                (b, h)          False where "previous" reaches before the episode
"row"                                  (b,)            row of the dataset, where it is asked for
"first"                                (b,)            first row of its episode, likewise
-----------------  ------------------  --------------  ----------------------------------------------------
"steps"                                (b,)            n: the bootstrap value is discounted by gamma^n
("next_obs", name)                     (b, o, d)       observation n rows later, where the return bootstraps
"next_action"                          (b, a)          action of the data in that row
=================  ==================  ==============  ====================================================

Pictures are no columns of the dataset: a batch holds them as ("obs", name) (b, o, height, width, 3) uint8.

Batches of post-training hold, under "group", b groups of k candidates: their own "obs", "action" (b, k, h, a),
"valid" and "score" (b, k).

Flow time: noise at t = 0, data at t = 1, velocity = data - noise; generation integrates upwards.
"""

OBS = "obs"
ACTION = "action"
REWARD = "reward"
MASK = "mask"
TERMINAL = "terminal"
EPISODE = "episode"
TASK = "task"
VALID = "valid"
PREVIOUS = "previous"
KNOWN = "known"
ROW = "row"
FIRST = "first"
STEPS = "steps"
NEXT_OBS = "next_obs"
NEXT_ACTION = "next_action"
GROUP = "group"
SCORE = "score"
