"""The only training loop, exact save and resume, loggers."""

from flowpolicy.train.experiment import Experiment as Experiment
from flowpolicy.train.loop import Trainer as Trainer
