"""The agents of :mod:`.every` with eyes, and batches with pictures."""

import dataclasses

from flowpolicy.nets.backbones import SmallConv
from flowpolicy.nets.vision import VisionEncoder
from tests.pictures import batch, contract, normalizer

from .every import CLONING, OFFLINE

SEES = VisionEncoder(backbone=SmallConv(width=4, keypoints=4, feature=4), width=4)


def agent_of(name, **options):
    """An agent that sees, at toy size."""
    config = dataclasses.replace((CLONING | OFFLINE)[name], encoder=SEES)
    options = {"steps": 9, "seed": 0, "compile": False} | options
    sizes = {"chunk": config.chunk, "history": 1}
    filled = dataclasses.replace(contract(**sizes), execute=config.execute, nfe=config.nfe)
    return config.build(filled, normalizer(), **options)


def batches_of(name):
    """A function of a seed that makes batches for it."""
    chunk = (CLONING | OFFLINE)[name].chunk
    return lambda seed: batch(rows=6, chunk=chunk, seed=seed, transitions=name in OFFLINE)
