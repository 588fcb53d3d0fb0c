"""Every agent, student and laboratory value: the compiled loss is the loss. And what is said where it cannot be.

Graphs are run by PyTorch ('aot_eager'); tests/agents/base/test_compiled.py goes through the code generator. Without
the run-time checks of shapes, which PyTorch's compiler cannot look through.
"""

import dataclasses
import random

import pytest
import torch

from flowpolicy.agents.base import compiled_loss
from flowpolicy.agents.base.compiled_loss import CompiledLoss
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.agents.cloning.regression import Regression, RegressionAgent
from flowpolicy.core.errors import TrainingError
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.refusals import conflicts
from flowpolicy.flows.axes.registry import AXES, VALUES

from .cloning.test_flow import completed, evaluations_for, setting, trained, value
from .every import CLONING, EVERY, flat, make, update
from .seeing import agent_of, batches_of
from .uninstrumented import uninstrumented


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setattr(compiled_loss, "BACKEND", "aot_eager")
    with uninstrumented():
        yield


@pytest.mark.parametrize("name", EVERY)
def test_compiled_agents_learn_what_the_others_do(name, tmp_path):
    """Through all phases: eight updates of ten."""
    learned = []
    for compile in (False, True):
        agent, batches = make(name, tmp_path, compile=compile)
        assert isinstance(agent._loss, CompiledLoss) == compile
        update(agent, batches, 8)
        learned.append(flat(agent))
    for key, expected in learned[0].items():
        torch.testing.assert_close(learned[1][key], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dm1", "flow_bc", "regression", "mip", "fql", "iql", "fisher"])
def test_compiled_agents_learn_from_pictures_what_the_others_do(name):
    learned = []
    for compile in (False, True):
        agent, batches = agent_of(name, compile=compile), batches_of(name)
        for seed in range(3):
            agent.update(batches(seed), torch.Generator().manual_seed(seed))
        learned.append(flat(agent))
    for key, expected in learned[0].items():
        torch.testing.assert_close(learned[1][key], expected, rtol=1e-4, atol=1e-5)


def values_of(chosen):
    return {(value.axis, value.name) for value in chosen.values()}


def specs_of_all_values(seed=0):
    """Few valid specs in which every value of every axis occurs that occurs in any valid one."""
    stream, array, seen = random.Random(seed), [], set()
    for axis in sorted(AXES, key=lambda axis: -len(VALUES[axis])):
        for name in VALUES[axis]:
            offers = [completed([(axis, name)], stream) for _ in range(16)] if (axis, name) not in seen else []
            if offers := [chosen for chosen in offers if chosen]:
                array.append(max(offers, key=lambda chosen: len(values_of(chosen) - seen)))
                seen |= values_of(array[-1])
    return array, seen


LABORATORY, SEEN = specs_of_all_values()


def test_the_laboratory_is_covered():
    never = {(axis, name) for axis in AXES for name in VALUES[axis]} - SEEN
    for axis, name in never:
        chosen = dataclasses.replace(FlowSpec(), **{axis: value(axis, name)})
        assert conflicts(chosen, setting(chosen)), f"{axis} {name}"
    assert len(never) < 8


@pytest.mark.parametrize("chosen", LABORATORY, ids=lambda spec: "-".join(value.name for value in spec.values()))
def test_compiled_laboratory_values_learn_what_the_others_do(chosen):
    config = Flow(**CLONING["flow"].__dict__ | {"flow": chosen, "nfe": evaluations_for(chosen)})
    eager, compiled = (trained(config, 3, compile=compile)[0] for compile in (False, True))
    for key, expected in eager.actor.state_dict().items():
        torch.testing.assert_close(compiled.actor.state_dict()[key], expected, rtol=1e-4, atol=1e-5)


class Strangers(RegressionAgent):
    """Losses as a newcomer writes them."""

    drawn = ()

    def draw(self, action, generator):
        return self.drawn

    def error(self, obs, action):
        cond = self.actor.encoder(obs).cond
        zeros = torch.zeros_like(action)
        return (self.actor.net(zeros, zeros[:, 0, 0], cond).value - action).square()


class Annealed(Strangers):
    def loss(self, obs, action, valid, draws):
        return self.error(obs, action).mean() * self.updates / self.steps, {}


class LateStage(Strangers):
    weight = 1

    def loss(self, obs, action, valid, draws):
        return self.error(obs, action).mean() * self.weight, {}

    def update(self, batch, generator):
        self.weight = 1 + self.updates // 20
        return super().update(batch, generator)


class Progress(Strangers):
    @property
    def drawn(self):
        return (self.updates / self.steps,)

    def loss(self, obs, action, valid, draws):
        return self.error(obs, action).mean() * draws[0], {}


class Growing(Strangers):
    seen: list

    def loss(self, obs, action, valid, draws):
        return self.error(obs, action).mean() * len(self.seen), {}

    def update(self, batch, generator):
        self.seen = [*getattr(self, "seen", ()), 1]
        return super().update(batch, generator)


class Branching(Strangers):
    def loss(self, obs, action, valid, draws):
        error = self.error(obs, action)
        if error.mean() > 1:
            error = error.sqrt()
        return error.mean(), {}


class Printing(Strangers):
    def loss(self, obs, action, valid, draws):
        error = self.error(obs, action).mean()
        print("loss", error)
        return error, {}


class Noisy(Strangers):
    def loss(self, obs, action, valid, draws):
        return (self.error(obs, action) * torch.rand_like(action)).mean(), {}


class RightlyAnnealed(Strangers):
    """Everything right: what changes is drawn, rows are chosen by a mask, and a switch is thrown once."""

    late = False

    @property
    def drawn(self):
        return (torch.tensor(self.updates / self.steps),)

    def loss(self, obs, action, valid, draws):
        error = self.error(obs, action)
        error = error.abs() if self.late else error
        return error[valid].mean() * (1 + draws[0]), {"rows": valid.sum()}

    def update(self, batch, generator):
        self.late = self.updates >= 4
        return super().update(batch, generator)


def strangers(kind, *, compile=True, updates=8, steps=10):
    @dataclasses.dataclass(frozen=True)
    class Config(Regression):
        def build(self, *args, **kwargs):
            return kind(self, *args, **kwargs)

    return trained(Config(**CLONING["regression"].__dict__), updates, compile=compile)


MISTAKES = [
    (Annealed, r"the loss of Annealed reads a Python number that changes: self\S*updates was 0 .* read by .*\.py:\d+"),
    (Progress, r"the loss of Progress is given a Python number that changes: \[0\.0\] was \[0\.125\]"),
    (Growing, r"the loss of Growing reads a Python number that changes: len\(self\.seen\) was 1"),
    (
        Branching,
        r"the loss of Branching cannot be compiled: its course .*`if error.mean\(\) > 1:`",
    ),
    (Printing, r"the loss of Printing cannot be compiled: loss \(.*\.py:\d+\), `print\("),
    (Noisy, r"the loss of Noisy is \S+ when compiled .* not, for the same arguments: it draws random numbers itself"),
]


@pytest.mark.parametrize(("kind", "message"), MISTAKES)
def test_a_mistake_is_refused_by_name(kind, message):
    with pytest.raises(TrainingError, match=message) as caught:
        strangers(kind)
    assert "--no-compile" in caught.value.fix
    strangers(kind, compile=False)


def test_a_number_that_changes_late_is_refused_then():
    strangers(LateStage, updates=20)
    with pytest.raises(TrainingError, match=r"reads a Python number that changes: self\.weight was 1"):
        strangers(LateStage, updates=21)


def test_annealing_masks_and_switches_are_trained_right():
    eager, compiled = (strangers(RightlyAnnealed, compile=compile)[0] for compile in (False, True))
    for key, expected in eager.actor.state_dict().items():
        torch.testing.assert_close(compiled.actor.state_dict()[key], expected)
