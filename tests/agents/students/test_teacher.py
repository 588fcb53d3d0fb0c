"""What a teacher answers, against the closed form of a Gaussian flow."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.students.teacher import Teacher
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.flow_spec import Sampling
from flowpolicy.flows.axes.registry import make
from flowpolicy.policy.samplers import FlowSampler

from ...taught import exact_policy, exact_teacher, noise_of, observed

ROWS = 200


def error(found, exact):
    return float((found - exact).square().mean().sqrt())


def test_chunks_states_and_noise_are_those_of_the_closed_form():
    teacher, obs, noise = exact_teacher(), observed(ROWS), noise_of(ROWS)
    net = teacher.policy.actor.net
    assert error(teacher.carry(obs, noise, 400), net.at(noise, 1.0, obs)) < 5e-3
    states = teacher.along(obs, noise, (0, 100, 300, 400), 400)
    for state, t in zip(states, (0.0, 0.25, 0.75, 1.0), strict=True):
        assert error(state, net.at(noise, t, obs)) < 5e-3
    assert torch.equal(states[0], noise)
    chunk = net.at(noise, 1.0, obs)
    for inversion, tolerance in (("afp", 5e-3), ("midpoint", 1e-3), ("exact", 5e-3)):
        assert error(teacher.invert(obs, chunk, 400, inversion), noise) < tolerance, inversion


def test_round_trips_of_a_few_steps():
    """AFP is nearer to what Euler makes of the noise than midpoint is; fixed points undo Euler's steps."""
    teacher, obs = exact_teacher(std=0.2), observed(ROWS)
    chunk = teacher.policy.actor.net.at(noise_of(ROWS), 1.0, obs)
    trip = {
        name: error(teacher.carry(obs, teacher.invert(obs, chunk, 16, name), 16), chunk)
        for name in ("afp", "midpoint", "exact")
    }
    assert trip["exact"] < 1e-3 < trip["afp"] < trip["midpoint"]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"source": make("source", "mixed")}, "depends on the observation"),
        ({"solver": make("solver", "sde")}, "draws noise on the way"),
        ({"target": make("target", "segment")}, "describes segments"),
    ],
)
def test_policies_that_cannot_teach_say_why(choice, reason):
    policy = exact_policy()
    policy.config = dataclasses.replace(policy.config, sampler=FlowSampler(Sampling(**choice)))
    with pytest.raises(ConfigError, match=reason):
        Teacher(policy)


def test_evaluations_that_its_solver_cannot_spend_are_refused():
    policy = exact_policy()
    midpoint = FlowSampler(Sampling(solver=make("solver", "midpoint")))
    policy.config = dataclasses.replace(policy.config, sampler=midpoint)
    with pytest.raises(ConfigError, match="nfe=3"):
        Teacher(policy).require_evaluations(3)
