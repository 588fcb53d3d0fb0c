"""The policy's side: when it decides, what it commits, what it does without a chunk; a policy on a server."""

import dataclasses
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from flowpolicy.core.errors import ContractError, ServingError
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import Contract
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.session import Session
from flowpolicy.real_robot.bridge.chunks import hermite
from flowpolicy.real_robot.bridge.ring_records import unpack_chunk
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.session.policy_process import PolicyLoop, is_address, load_source, read_token
from flowpolicy.real_robot.session.remote_policy import RemotePolicy

from ...serve.conftest import serving
from ..simulated import LIMITS, Simulation

CONTRACT = Contract(ArmTaskConfig().spec(), history=1, chunk=8, execute=2, nfe=1)


class Steady:
    """Joint 1 goes on by ``step`` rad a row; the answers are kept."""

    contract, prefix, continues, evaluations, step = CONTRACT, 0, False, 0, 0.004

    def __init__(self):
        self.committed, self.silent, self.spoiled, self.noise = [], False, False, None

    def stream(self, seed):
        self.seed = seed

    def chunk(self, obs, stream, committed=None, previous=None):
        committed = None if committed is None else committed.action[0, : committed.length[0]]
        self.committed.append(committed)
        if self.silent:
            return None
        rows = np.zeros((8, 8))
        rows[:, 0], rows[:, 7] = self.step, 0.08
        if self.noise is not None:
            rows[:, :7] += self.noise.normal(scale=0.002, size=(8, 7))
        if committed is not None:
            rows[: len(committed)] = committed
        return rows * np.nan if self.spoiled else rows


def deploy(sim, source, mode="crossfade", latency=0.0, note=lambda text: None):
    sim.ready()
    sim.session.command("begin", 3)
    loop = PolicyLoop(Session(source), sim.session, LIMITS.tool, mode, now=lambda: sim.t + latency, note=note)
    sim.policy = lambda sim: loop.step(sim.t) - sim.t
    return loop


@pytest.fixture
def sim(tmp_path, monkeypatch):
    return Simulation(tmp_path, monkeypatch)


def chunks(sim):
    records, _, _ = sim.session.chunks.read(0)
    return [unpack_chunk(record) for record in records if record["rows"]]


def test_it_decides_every_second_row_and_the_arm_follows(sim):
    source = Steady()
    deploy(sim, source)
    sim.run(2.0)
    assert sim.state is State.RUNNING
    assert source.seed == derive(0, "robot", 3)
    assert len(source.committed) == pytest.approx(20, abs=1)
    assert all(committed is None for committed in source.committed)
    assert sim.ticks[-1]["starved"] == 0
    # 0.004 rad in 0.05 s.
    moved = sim.ticks[-1]["q_cmd"] - sim.ticks[-126]["q_cmd"]
    assert moved[0] == pytest.approx(0.5 * 0.08, rel=0.1)
    np.testing.assert_allclose(moved[1:], 0.0, atol=1e-6)


def test_a_policy_that_has_no_chunk_in_time_is_alive_and_the_arm_holds(sim):
    source = Steady()
    deploy(sim, source)
    sim.run(1.0)
    source.silent = True
    sim.run(0.9)
    assert sim.state is State.HOLD
    assert "no chunk" in sim.events("state")[-1]
    source.silent = False
    sim.run(0.3)
    assert sim.state is State.RUNNING


def test_a_chunk_that_is_no_number_is_none(sim):
    source, notes = Steady(), []
    deploy(sim, source, note=notes.append)
    sim.run(1.0)
    source.spoiled = True
    sim.run(0.9)
    assert sim.state is State.HOLD
    assert "NaN" in notes[0]


def test_with_rtc_the_policy_continues_what_falls_due_before_it_can_answer(sim):
    source = Steady()
    source.prefix, source.noise = 4, np.random.default_rng(0)
    deploy(sim, source, "rtc", latency=0.08)
    sim.run(1.0)
    made = chunks(sim)
    # The first has nothing to continue; 0.08 s and more are two rows of 0.05 s.
    assert source.committed[0] is None
    assert [len(committed) for committed in source.committed[1:]] == [2] * (len(made) - 1)
    for old, new in itertools.pairwise(made):
        assert new.frozen == 2
        for row in range(2):
            np.testing.assert_allclose(new.q[row], hermite(old, new.t0 + row * new.dt)[0], atol=1e-9)
    assert sim.ticks[-1]["rejected"] == 0


def test_more_is_never_committed_than_the_policy_was_trained_for(sim):
    source = Steady()
    source.prefix = 1
    deploy(sim, source, "rtc", latency=0.2)
    sim.run(1.0)
    assert {len(committed) for committed in source.committed if committed is not None} == {1}


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_trained_prefix_reaches_the_network_of_any_engine(tmp_path, engine):
    import torch

    from flowpolicy.agents.cloning.dm1 import DM1
    from flowpolicy.data.normalize import Normalizer
    from flowpolicy.policy.actor import PolicyConfig
    from flowpolicy.policy.policy import Policy
    from flowpolicy.policy.samplers import MAP, Prefixed

    torch.manual_seed(0)
    shapes = {key: spec.shape[0] for key, spec in CONTRACT.spec.observation.items()}
    config = PolicyConfig(DM1().net, DM1().encoder, Prefixed(MAP, 3))
    policy = Policy(config, CONTRACT, Normalizer(shapes, 8))
    for parameter in policy.actor.parameters():  # a new network answers zero to everything
        torch.nn.init.normal_(parameter, std=0.1)
    policy.save(tmp_path)
    notes = []
    loaded = load_source({"run": str(tmp_path), "engine": engine}, notes.append)
    assert "ready after" in notes[0]
    assert engine in ("auto", loaded.name)
    session = Session(loaded)
    assert session.source.prefix == 3
    found, committed = [], np.full((2, 8), 0.01)
    for due in (committed, None):
        session.reset(1)
        session.episode.see({key: np.zeros(size, np.float32) for key, size in shapes.items()})
        found.append(session.episode.decide(None if due is None else Committed.of([due], (8, 8))))
    np.testing.assert_array_equal(found[0][:2], committed.astype(np.float32))
    assert np.abs(found[1] - found[0])[2:].max() > 0


class Server:
    """An engine of the policy server that answers like Steady."""

    name, candidates, prefix, nfe = "steady", 1, 0, 1

    def __init__(self, contract=CONTRACT):
        self.contract, self.block = contract, None

    def noise(self, rows, rng):
        return np.zeros((rows, 8, 8), np.float32)

    def act(self, obs, noise, *rest):
        if self.block is not None:
            self.block.wait(20)
        rows = np.zeros((len(noise), 8, 8), np.float32)
        rows[..., 0], rows[..., 7] = Steady.step, 0.08
        return rows


def served(engine, **options):
    from flowpolicy.serve.model import Model

    return serving(Model.prepare((engine,), "step_1", (1,), rounds=1), **options)


def test_a_policy_on_a_server_drives_the_arm_and_its_death_holds_it(sim):
    notes = []
    with served(Server(), token="0123456789abcdef") as server:
        with pytest.raises(ServingError, match="token"):
            RemotePolicy(server.url, "", 0)
        source = RemotePolicy(server.url, "0123456789abcdef", 0, notes.append)
        assert source.contract == CONTRACT
        source._budget_ms = 10_000.0
        deploy(sim, source)
        sim.run(1.0)
        assert sim.state is State.RUNNING
        assert sim.ticks[-1]["chunks"] >= 9
    sim.run(0.9)
    assert sim.state is State.HOLD
    assert np.abs(sim.ticks[-1]["dq_cmd"]).max() < 1e-6
    assert "closed the connection" in notes[0]
    sim.run(2.0)
    assert sim.state is State.IDLE


def test_late_chunks_of_a_server_are_no_chunks_and_it_goes_on_when_it_answers_again(sim):
    engine, notes = Server(), []
    with served(engine) as server:
        source = RemotePolicy(server.url, "", 0, notes.append)
        source._budget_ms = 10_000.0  # simulated time stands still while real time passes
        deploy(sim, source)
        sim.run(0.5)
        assert sim.state is State.RUNNING
        engine.block, source._budget_ms = threading.Event(), 10.0
        sim.run(0.9)
        assert sim.state is State.HOLD
        assert notes
        engine.block.set()
        source._budget_ms = 10_000.0
        sim.run(0.3)
        assert sim.state is State.RUNNING
        source._client.close()


def test_another_policy_under_the_same_address_is_refused(sim):
    other = dataclasses.replace(CONTRACT, chunk=4)
    with served(Server()) as server:
        source = RemotePolicy(server.url, "", 0)
        source._client.close()
        source._client, source._contract = None, other
        assert source.chunk({}, None) is None
        source._connecting.join(10.0)
        with pytest.raises(ContractError, match="another policy"):
            source.chunk({}, None)


def test_addresses_tokens_and_a_client_without_torch(tmp_path, monkeypatch):
    assert is_address("ws://10.0.0.2:8765")
    assert not is_address("runs/ws")
    monkeypatch.setenv("FLOWPOLICY_TOKEN", "from the environment")
    assert read_token(None) == "from the environment"
    (tmp_path / "token").write_text("from a file\n")
    assert read_token(str(tmp_path / "token")) == "from a file"
    code = (
        "import sys, flowpolicy.real_robot.session.policy_process, flowpolicy.real_robot.session.remote_policy;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
