"""FQL: assembly, and what the two parts of its actor loss reach."""

import dataclasses

import pytest

from flowpolicy.agents.fql import FQL
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.plain import Plain

from .shared import check_agent

SMALL = {"net": Plain(width=32, depth=2), "critic": CriticConfig(width=32, depth=2)}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"chunk": 3, "execute": 3, "history": 2},
        {"n_step": 3, "critic": CriticConfig(width=16, depth=2, members=2, held_out=2, aggregate="min")},
        {"encoder": StateEncoder(width=8), "ema": 0.9, "normalize_q": True},
    ],
)
def test_suite(change, demonstrations):
    check_agent(dataclasses.replace(FQL(**SMALL), **change), demonstrations)
