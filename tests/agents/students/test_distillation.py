"""Students of all methods: what they are trained on, honest evaluations, exact resume, pinned teachers."""

import dataclasses
import functools

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.agents.students.distillation import METHODS, Order, student_of
from flowpolicy.agents.students.refiner import letters_for
from flowpolicy.configs.presets import KINDS
from flowpolicy.core.config import decode, encode
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.keys import ACTION, OBS, VALID
from flowpolicy.core.references import citations
from flowpolicy.core.seed import torch_generator
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.targets import Curve
from flowpolicy.policy import Policy

from ...taught import CONTRACT, SMALL, exact_teacher, noise_of, observed

TRAINED = {
    "flow": Flow(**SMALL),
    "data": Flow(**SMALL, flow=FlowSpec(target=make("target", "data"))),
    "dm1": DM1(**SMALL),
}
ROWS = 16


def build(config, steps=10, seed=0):
    contract = dataclasses.replace(CONTRACT, nfe=config.nfe)
    return config.build(contract, Normalizer({"state": 2}, 2), steps=steps, seed=seed, compile=False)


def batch(seed, rows=ROWS):
    state = observed(rows, seed)["state"]
    action = (state + 0.1 * noise_of(rows, seed)).clamp(-1, 1)
    valid = torch.ones(rows, 2, dtype=torch.bool)
    valid[0, 1] = False
    return {OBS: {"state": state}, ACTION: action, VALID: valid}


def update(agent, times, random):
    return [agent.update(batch(agent.updates), random) for _ in range(times)]


@functools.cache
def trained(name):
    agent = build(TRAINED[name])
    update(agent, 10, torch_generator(0))
    return agent.policy()


@pytest.fixture
def teacher_run(tmp_path):
    return lambda name="flow": trained(name).save(tmp_path / name)


def student(run, name, trained_as="flow", **order):
    order = {"nfe": 1 if name == "slimflow" else 2, "teacher_nfe": 8, **order}
    return student_of(run, TRAINED[trained_as], name, Order(**order), lambda: observed(64))[0]


def flat(agent):
    return {f"{file}/{k}": v.clone() for file, tensors in agent.state_dict().items() for k, v in tensors.items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.quick("students")
def test_every_method_learns_resumes_bit_for_bit_and_acts_as_it_says(name, teacher_run, tmp_path):
    config = student(teacher_run(), name, **({"real": 0.5} if name == "improved-reflow" else {}))
    assert decode(encode(config, KINDS), KINDS) == config
    agent, random = build(config), torch_generator(1)
    start = flat(agent)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    metrics = update(agent, 4, random)  # phases change at the fifth and sixth update
    streams, stored = (
        random.get_state(),
        {f: {k: v.clone() for k, v in t.items()} for f, t in agent.state_dict().items()},
    )
    metrics += update(agent, 4, random)
    assert torch.equal(torch.random.get_rng_state(), before), "an update drew from the global generator"
    assert all(bool(torch.isfinite(value)) for row in metrics for value in row.values())
    assert any(not torch.equal(start[k], v) for k, v in flat(agent).items() if k.startswith("weights/"))

    other = build(config, seed=9)
    other.load_state_dict(stored)
    random.set_state(streams)
    update(other, 4, random)
    for key, value in flat(agent).items():
        assert torch.equal(value, flat(other)[key]), key

    policy = agent.policy()
    policy.save(tmp_path / "student")
    loaded, calls = Policy.load(tmp_path / "student"), []
    for net in (loaded.actor.net, loaded.actor.refiner):
        if net is not None:
            net.register_forward_hook(lambda *_: calls.append(1))
    chunk = loaded.act(observed(5), torch_generator(3))
    assert loaded.evaluations == len(calls) == config.nfe == loaded.contract.nfe
    assert torch.equal(chunk, policy.act(observed(5), torch_generator(3)))
    assert any("arxiv" in line for line in citations("agent", config))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reflow", "refiner", "backward-simulation", "arcflow"])  # each asks otherwise
@pytest.mark.parametrize("trained_as", ["data", "dm1"])
def test_data_predictions_and_flow_maps_teach_too(name, trained_as, teacher_run):
    agent = build(student(teacher_run(trained_as), name, trained_as))
    rows = update(agent, 2, torch_generator(0))
    agent.optimizer.updates = 8
    rows += update(agent, 1, torch_generator(0))
    assert all(bool(torch.isfinite(value)) for row in rows for value in row.values())
    chunk = agent.policy().act(observed(3), torch_generator(0))
    assert bool(torch.isfinite(chunk).all())


def taught(agent, rows=ROWS, updates=0, teacher=None):
    """Draws of one update with an exact teacher."""
    if teacher is not None:
        agent._teacher = [teacher]
    agent.optimizer.updates = updates
    return agent.draws(agent.scaled(batch(0, rows)), torch_generator(0))


def test_real_pairs_are_the_data_and_their_noise_under_the_exact_flow(teacher_run):
    config = student(teacher_run(), "improved-reflow", real=0.3, teacher_nfe=400, inversion="midpoint")
    agent, teacher, rows = build(config), exact_teacher(), batch(0)
    d = taught(agent, teacher=teacher)
    assert d["made"].tolist() == [False] * 4 + [True] * 12
    assert torch.equal(d["data"][:4], agent.normalizer.action(rows[ACTION])[:4])
    obs = dict(rows[OBS].items())
    carried = teacher.policy.actor.net.at(d["noise"], 1.0, obs)
    assert torch.allclose(carried, d["data"], atol=0.02)
    # The step past the episode's end counts nothing in a real chunk.
    loss = agent.loss(obs, rows[ACTION], rows[VALID], d)[0].item()
    d["data"][0, 1] += 1.0
    assert agent.loss(obs, rows[ACTION], rows[VALID], d)[0].item() == pytest.approx(loss, rel=1e-6)
    d["data"][8, 1] += 1.0
    assert agent.loss(obs, rows[ACTION], rows[VALID], d)[0].item() != pytest.approx(loss, rel=1e-3)


def test_slimflow_guides_half_of_the_rows_at_the_noise_alone(teacher_run):
    agent, teacher = build(dataclasses.replace(student(teacher_run(), "slimflow"), guide="teacher")), exact_teacher()
    early = taught(agent, updates=2, teacher=teacher)
    assert float(early["s"].min()) > 0 and not torch.equal(early["noise"], noise_of(ROWS))
    teacher = exact_teacher(straight=True)
    net = teacher.policy.actor.net
    agent.actor.encoder, agent.actor.net = teacher.policy.actor.encoder, net  # the student is exact as well
    late = taught(agent, updates=8, teacher=teacher)
    assert torch.equal(late["s"], torch.zeros(ROWS))
    assert torch.allclose(late["data"], net.at(late["noise"], 1.0, dict(batch(0)[OBS].items())), atol=1e-5)


def test_the_guide_of_the_second_phase_is_the_averaged_student_of_the_first(teacher_run):
    agent = build(student(teacher_run(), "slimflow"))
    update(agent, 6, torch_generator(0))
    average = {name: value.clone() for name, value in agent.ema.state_dict().items()}
    update(agent, 2, torch_generator(0))
    assert all(torch.equal(value, average[name]) for name, value in agent._guide[0].state_dict().items())


def test_boss_trains_on_chords_of_the_exact_trajectories(teacher_run):
    config = student(teacher_run(), "boss", nfe=3, teacher_nfe=128)
    assert len(config.flow.schedule.nodes) == 4
    agent, teacher = build(config), exact_teacher()
    d = taught(agent, rows=64, teacher=teacher)
    obs, net = dict(batch(0, 64)[OBS].items()), teacher.policy.actor.net
    nodes = torch.tensor(config.flow.schedule.nodes)
    segment = torch.bucketize(d["s"], nodes, right=True) - 1
    assert set(segment.tolist()) == {0, 1, 2}
    # On the chord: the noise of the trajectory follows from its state at the segment's start.
    for row in range(64):
        ends = []
        for t in nodes[segment[row] : segment[row] + 2]:
            x = (1 - t) * d["noise"][row] + t * d["data"][row]
            mean = net.mean + 0.1 * obs["state"][row, 0, 1]
            ends.append((x - mean * t) / (t**2 * net.std**2 + (1 - t) ** 2) ** 0.5)
        assert torch.allclose(ends[0], ends[1], atol=0.03)


def test_a_refiner_has_nothing_to_learn_from_a_constant_velocity_and_the_change_from_another(teacher_run):
    agent = build(student(teacher_run(), "refiner", nfe=4))
    assert agent.config.flow.solver.letters == "ERR" and agent.config.distance == pytest.approx(1 / 3)
    still = taught(agent, teacher=exact_teacher(std=1.0, straight=True))
    assert torch.allclose(still["change"], torch.zeros_like(still["change"]), atol=1e-6)
    teacher = exact_teacher()
    d, obs = taught(agent, teacher=teacher), dict(batch(0)[OBS].items())
    assert torch.allclose(d["change"] + d["v"], teacher.velocity(obs, d["x"], d["t"]), atol=1e-6)
    assert float(d["t"].max()) <= 1.0


@pytest.mark.parametrize(("nfe", "letters"), [(2, "ER"), (3, "HR"), (4, "ERR"), (5, "HRR"), (8, "ERRRR")])
def test_the_large_network_is_asked_once_or_twice_and_is_left_as_it_is(nfe, letters, teacher_run):
    assert letters_for(nfe) == letters
    run = teacher_run()
    agent = build(student(run, "refiner", nfe=nfe))
    update(agent, 3, torch_generator(0))
    policy, calls = agent.policy(), []
    for name, value in trained("flow").actor.state_dict().items():
        assert torch.equal(policy.actor.state_dict()[name], value), name
    policy.actor.net.register_forward_hook(lambda *_: calls.append(1))
    policy.act(observed(3), torch_generator(0))
    assert len(calls) == 1 + nfe % 2 and policy.evaluations == nfe


def test_co_training_follows_the_velocity_of_the_teacher(teacher_run):
    agent, teacher = build(student(teacher_run(), "backward-simulation")), exact_teacher()
    d, obs = taught(agent, updates=0, teacher=teacher), dict(batch(0)[OBS].items())
    s = d["s"].reshape(-1, 1, 1)
    x = (1 - s) * d["noise"] + s * d["data"]
    assert torch.allclose(d["data"] - d["noise"], teacher.velocity(obs, x, d["s"]), atol=1e-5)
    assert "push" not in d and "made" not in d


def test_a_map_whose_samples_have_the_followed_law_is_pushed_nowhere(teacher_run):
    """Before the second network moves it is the teacher, so that the difference of the two is zero."""
    agent = build(student(teacher_run(), "backward-simulation"))
    d = taught(agent, updates=6)
    assert float(d["push"].abs().max()) < 1e-5
    agent._fake[0].net.trunk.outlet.linear.bias.data += 0.5
    assert float(taught(agent, updates=6)["push"].abs().max()) > 1e-3


def test_arcflow_asks_the_teacher_along_its_own_curve_and_at_first_along_the_teacher_s(teacher_run):
    config = dataclasses.replace(student(teacher_run(), "arcflow"), drop=0.0)
    agent, teacher = build(config), exact_teacher()
    for updates, share in ((0, 1.0), (2, 0.6), (7, 0.0)):
        d, obs = taught(agent, updates=updates, teacher=teacher), dict(batch(0)[OBS].items())
        assert bool((d["after"].diff(dim=1) >= 0).all()) and float((d["after"] + d["span"]).max()) <= 0.5 + 1e-6
        assert torch.allclose((d["span"] - agent.width).sum(1), torch.full((ROWS,), share * (0.5 - agent.width)))
        # The student, whose last layer is still zero, stands: all of the way is the teacher's.
        x, after = d["x"], torch.zeros(ROWS)
        for k in range(4):
            assert torch.allclose(d["slope"][:, k], teacher.velocity(obs, x, d["s"] + d["after"][:, k]), atol=1e-5)
            x = x + (d["span"][:, k] - agent.width).reshape(-1, 1, 1) * d["slope"][:, k]
            after = d["after"][:, k]
        assert float(after.min()) >= 0


def test_the_exact_segment_has_no_loss(teacher_run):
    """A teacher with a constant velocity: one mode of the rate 0 that is that velocity."""
    config = student(teacher_run(), "arcflow")
    config = dataclasses.replace(
        config, flow=dataclasses.replace(config.flow, target=make("target", "segment", modes=1))
    )
    agent, teacher, rows = build(config), exact_teacher(std=1.0, straight=True), batch(0)
    d, obs = taught(agent, teacher=teacher), dict(batch(0)[OBS].items())
    one = torch.ones(ROWS, 2, 1, 1)
    agent.segment = lambda obs, x, s: Curve(one, teacher.velocity(dict(rows[OBS].items()), x, s)[:, :, None], 0 * one)
    assert agent.loss(obs, rows[ACTION], rows[VALID], d)[0].item() < 1e-12


@pytest.mark.parametrize(
    ("name", "order", "reason"),
    [
        ("slimflow", {"nfe": 2}, "one evaluation"),
        ("refiner", {"nfe": 1}, "at least 2"),
        ("reflow", {"real": 0.5}, "improved-reflow"),
        ("improved-reflow", {"real": 1.5}, "real is 1.5"),
        ("boss", {"nfe": 9}, "between 1 and 8"),
        ("distil", {}, "known: "),
    ],
)
def test_orders_that_do_not_fit_are_refused(name, order, reason, teacher_run):
    with pytest.raises(ConfigError, match=reason):
        student(teacher_run(), name, **order)


def test_teachers_that_do_not_fit_are_refused(teacher_run, tmp_path):
    run = teacher_run()
    for config in (student(run, "k-step"), student(run, "slimflow"), student(run, "arcflow")):
        with pytest.raises(ConfigError, match="times of its own steps"):
            student_of(run, config, "reflow", Order(), lambda: observed(8))
    latent = Flow(**SMALL, flow=FlowSpec(interpolant=make("interpolant", "trig")))
    for name in ("slimflow", "boss", "backward-simulation", "arcflow"):
        with pytest.raises(ConfigError, match="straight paths"):
            student_of(run, latent, name, Order(teacher_nfe=8), lambda: observed(8))


def test_the_teacher_is_pinned_by_its_weights(teacher_run, tmp_path):
    config = student(teacher_run(), "slimflow")
    trained("dm1").save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="other weights"):
        build(dataclasses.replace(config, teacher=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="without a teacher"):
        build(dataclasses.replace(student(teacher_run(), "refiner"), teacher="", teacher_weights=""))
