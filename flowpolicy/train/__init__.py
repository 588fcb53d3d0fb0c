"""The only training loop, exact save and resume, loggers, and run folders as objects.

Called, it is :func:`flowpolicy.train.training.train`: ``flowpolicy.train(experiment)``.
"""

from flowpolicy.core.callable_room import make_callable
from flowpolicy.train.experiment import Experiment as Experiment
from flowpolicy.train.loop import Trainer as Trainer

make_callable(__name__, "flowpolicy.train.training:train")
