"""The only training loop, exact save and resume, loggers, and run folders as objects.

Called, it is :func:`flowpolicy.configs.named_training.train`: ``flowpolicy.train("dm1-lift", data="lift.hdf5")``. That
one knows presets, as nothing in this room may; it is named here as text, and imported when it is called.
"""

from flowpolicy.core.callable_room import make_callable
from flowpolicy.train.experiment import Experiment as Experiment
from flowpolicy.train.loop import Trainer as Trainer

make_callable(__name__, "flowpolicy.configs.named_training:train")
