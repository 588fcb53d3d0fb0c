"""What a run cites: the publications that its configs declare."""

import dataclasses
from typing import ClassVar

import pytest

from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.references import Reference, citations
from flowpolicy.flows.dispersive import Dispersive


@dataclasses.dataclass(frozen=True)
class Part:
    name: ClassVar[str] = "euler"
    on: bool = True

    @property
    def references(self):
        return (Reference("A part"),) if self.on else ()


@dataclasses.dataclass(frozen=True)
class Whole:
    references: ClassVar[tuple[Reference, ...]] = (Reference("A whole", "2101.00001"),)
    solver: Part = Part()
    number: int = 3


def test_a_config_cites_itself_and_its_parts():
    assert list(citations("agent", Whole())) == [
        "agent: A whole https://arxiv.org/abs/2101.00001",
        "solver euler: A part",
    ]
    assert len(list(citations("agent", Whole(solver=Part(on=False))))) == 1


def test_what_is_switched_off_is_not_cited():
    assert not list(citations("dispersive", Dispersive(weight=0.0)))
    assert any("VICReg" in line for line in citations("dispersive", Dispersive("covariance")))


@pytest.mark.parametrize("family", sorted({type(preset.agent).__name__ for _, preset in PRESETS.values()}))
def test_every_algorithm_of_a_preset_names_its_publications(family):
    agent = next(preset.agent for _, preset in PRESETS.values() if type(preset.agent).__name__ == family)
    lines = [line for line in citations("agent", agent) if not line.startswith("dispersive")]
    assert bool(lines) != (family == "Regression")
    assert len(lines) == len(set(lines))
