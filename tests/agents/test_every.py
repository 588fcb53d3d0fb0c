"""What holds for every agent: the optimiser's options reach every step that is taken."""

import math

import pytest
import torch

from flowpolicy.agents.base.optimizer import Adam, Group, Optimizer, Stepper

from .every import EVERY, ROWS, make, update


def moved(name, folder, scaling):
    """How far one update moves the parameters of every group of every optimiser."""
    agent, batches = make(name, folder, scaling=scaling)
    agent.optimizer.updates = 6  # where phases of the students have begun, and ReBRAC's actor is updated
    steppers = {key: value for key, value in vars(agent).items() if isinstance(value, Stepper)}
    groups = {
        f"{key} {group}": list(s.groups[group].parameters.values()) for key, s in steppers.items() for group in s.groups
    }
    before = {key: [p.detach().clone() for p in parameters] for key, parameters in groups.items()}
    update(agent, batches, 1)
    return {
        key: math.sqrt(
            sum(float((p - old).detach().square().sum()) for p, old in zip(groups[key], before[key], strict=True))
        )
        for key in groups
    }


@pytest.mark.parametrize("name", EVERY)
def test_the_learning_rate_of_every_step_is_scaled_by_the_batch(name, tmp_path):
    """The first step of Adam is as long as its learning rate, whatever the gradient."""
    plain, scaled = moved(name, tmp_path, "none"), moved(name, tmp_path, "sqrt")
    for group, length in plain.items():
        assert length > 0, group
        assert scaled[group] / length == pytest.approx(math.sqrt(ROWS / 256), rel=0.02), group


def test_a_step_is_adamw_at_the_rate_of_the_schedule_with_clipped_gradients():
    options = Optimizer(lr=0.1, warmup=2, clip=0.5, weight_decay=0.3)
    weights = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    stepper = Stepper({"": Group(options, {"w": weights})}, steps=4)
    mean, square, w = torch.zeros(2), torch.zeros(2), weights.detach().clone()
    for n in range(4):
        gradient = torch.tensor([3.0, 4.0 + n])
        metrics = stepper.step((weights * gradient).sum(), rows=7)
        lr = 0.1 * [0.5, 1.0, 1.0, 0.5][n]  # the cosine is half way down at 3 of 2 to 4
        assert float(metrics["lr"]) == pytest.approx(lr)
        assert float(metrics["grad_norm"]) == pytest.approx(float(gradient.norm()))
        clipped = gradient * 0.5 / gradient.norm()
        mean, square = 0.9 * mean + 0.1 * clipped, 0.999 * square + 0.001 * clipped.square()
        rate = mean / (1 - 0.9 ** (n + 1)) / ((square / (1 - 0.999 ** (n + 1))).sqrt() + 1e-8)
        w = w - lr * (0.3 * w + rate)
    torch.testing.assert_close(weights.detach(), w, rtol=1e-4, atol=1e-6)
    assert stepper.updates == 4


def test_a_parameter_without_a_gradient_stays_and_needs_no_state():
    names = ("used", "unused", "late")
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in names}
    stepper = Stepper({"net": Group(Adam(), parameters)}, steps=4)
    stepper.step(parameters["used"].sum(), 1)
    stored = {name: value.clone() for name, value in stepper.state_dict().items()}
    assert torch.equal(parameters["unused"], torch.ones(2))
    assert set(stored) == {"updates", *(f"net/{key}/used" for key in ("step", "exp_avg", "exp_avg_sq"))}
    copies = {name: torch.nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
    other = Stepper({"net": Group(Adam(), copies)}, steps=4)
    other.load_state_dict(stored)
    for each, own in ((stepper, parameters), (other, copies)):
        each.step((own["used"] * own["late"]).sum(), 1)
    assert all(torch.equal(parameters[name], copies[name]) for name in names)
    with pytest.raises(KeyError, match="net/step/foreign"):
        other.load_state_dict({**stored, "net/step/foreign": torch.ones(())})
    with pytest.raises(KeyError, match="net/exp_avg/used"):
        other.load_state_dict({name: value for name, value in stored.items() if name != "net/exp_avg/used"})


@pytest.mark.parametrize("name", ["fql", "qc", "dm1", "gdro"])
def test_the_policy_shares_nothing_with_its_agent(name, tmp_path):
    agent, _ = make(name, tmp_path)
    before = torch.random.get_rng_state()
    policy = agent.policy()
    assert torch.equal(torch.random.get_rng_state(), before)
    own = {value.data_ptr() for part in (agent, agent.ema) if part for value in _tensors(part)}
    assert own.isdisjoint(value.data_ptr() for value in _tensors(policy))


def _tensors(part):
    return (
        part.state_dict().values() if not isinstance(part, torch.nn.Module) else [*part.parameters(), *part.buffers()]
    )
