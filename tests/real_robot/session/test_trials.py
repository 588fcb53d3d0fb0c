"""Trials at the arm: a person's verdicts, two policies in turns, records that are compared; in simulated time."""

import contextlib
import functools
import os
import pty

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import Contract
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.evaluate.report import compare, load_evaluation
from flowpolicy.real_robot.session import play as playing
from flowpolicy.real_robot.session import policy_process
from flowpolicy.real_robot.session.accelerated import accelerated_session
from flowpolicy.real_robot.session.launch import Setup
from flowpolicy.real_robot.session.trials import Trials, ask_person, keep_records

from .test_accelerated import numpy_body

CONTRACT = Contract(ArmTaskConfig().spec(), history=1, chunk=8, execute=2, nfe=1)
ADDRESSES = ("ws://127.0.0.1:1", "ws://127.0.0.1:2")


class Mover:
    """Joint 1 goes on by ``step`` rad a row; what it saw and its noise are kept."""

    contract, prefix, continues, evaluations = CONTRACT, 0, False, 0

    def __init__(self, step):
        self.step, self.seeds, self.goals = step, [], []

    def stream(self, seed):
        self.seeds.append(seed)

    def chunk(self, obs, stream, committed=None, previous=None):
        self.goals.append(obs["goal"][-1].copy())
        rows = np.zeros((8, 8))
        rows[:, 0], rows[:, 7] = self.step, 0.08
        return rows


@pytest.fixture
def movers(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    found = {address: Mover(step) for address, step in zip(ADDRESSES, (0.001, -0.001), strict=True)}
    monkeypatch.setattr(policy_process, "load_source", lambda options, note: found[options["run"]])
    monkeypatch.setattr(playing, "ArmTaskConfig", functools.partial(ArmTaskConfig, horizon=8))

    @contextlib.contextmanager
    def started(setup):
        with accelerated_session(setup, numpy_body) as running:
            yield running

    monkeypatch.setattr(playing, "start_session", started)
    return found


def play(out, trials, addresses=ADDRESSES):
    policies = [playing.PolicyAt(address) for address in addresses]
    return playing.play(Setup(), "reach", out, 0, 0, policies[0], 5.0, trials=trials, others=policies[1:])


def test_two_policies_take_turns_meet_the_same_starts_and_are_compared(tmp_path, movers):
    asked, kept, answers = [], [], iter("yndyy")

    def ask(number):
        asked.append(number)
        return next(answers)

    def keep(known):
        kept.append([len(one.episodes) for _, one in keep_records(known, ADDRESSES, tmp_path / "out", "a test")])

    (tmp_path / "out").mkdir()
    trials = Trials([CONTRACT, CONTRACT], 2, 5, ask, keep)
    order = [(one.index, one.policy) for one in trials._left]
    assert sorted(order) == [(index, policy) for index in range(2) for policy in (0, 1)]
    play(tmp_path / "out", trials)
    # The third was discarded and came again, under a number of its own.
    assert asked == [1, 2, 3, 4, 5]
    assert [(trial.index, trial.policy) for trial, _, _ in trials.played] == order
    assert [number for _, number, _ in trials.played] == [1, 2, 4, 5]
    assert [sum(one) for one in kept] == [1, 2, 3, 4]
    # Both of a pair met the same goal with the same noise, and each policy played its own turns alone.
    first, second = (movers[address] for address in ADDRESSES)
    goals = [np.unique(mover.goals, axis=0) for mover in (first, second)]
    np.testing.assert_array_equal(*goals)
    assert len(goals[0]) == 2
    noise = {trials.noise(trial) for trial, _, _ in trials.played}
    assert len(noise) == 2
    assert noise <= set(first.seeds)
    assert noise <= set(second.seeds)
    records = [load_evaluation(tmp_path / "out" / f"trials-5-{mark}.json") for mark in "ab"]
    assert records[0].plan.digest == records[1].plan.digest
    assert [one.run for one in records] == list(ADDRESSES)
    wins = {policy: sum(one.success for _, one in trials.episodes(policy)) for policy in (0, 1)}
    assert [record.success.mean for record in records] == [pytest.approx(wins[policy] / 2) for policy in (0, 1)]
    assert sum(wins.values()) == 3
    assert all(one.chunks > 0 and one.evaluations == one.chunks for record in records for one in record.episodes)
    assert compare(*records).n == 2


def test_one_policy_is_judged_by_its_task_where_nobody_is_asked(tmp_path, movers):
    trials = Trials([CONTRACT], 1, 0)
    played = play(tmp_path / "out", trials, ADDRESSES[:1])
    assert len(played.outcomes) == 1
    kept = keep_records(trials, ADDRESSES[:1], tmp_path / "out", "a test")
    assert [path.name for path, _ in kept] == ["trials-0.json"]
    assert load_evaluation(kept[0][0]).success.n == 1


def test_the_order_is_drawn_anew_for_every_pair_and_again_the_same_from_a_seed():
    def orders(seed):
        return [one.policy for one in Trials([CONTRACT, CONTRACT], 40, seed)._left[::2]]

    assert orders(1) == orders(1) != orders(2)
    assert 10 < sum(orders(1)) < 30


def test_a_person_answers_by_a_key_or_a_line_and_silence_is_no_answer(monkeypatch, capsys):
    ours, theirs = pty.openpty()
    read, write = os.pipe()
    for source, sink, typed, wanted in ((theirs, ours, b"xY\n", "y"), (read, write, b"?\n d\n", "d")):
        with os.fdopen(os.dup(source), "rb", buffering=0) as stream:
            monkeypatch.setattr("sys.stdin", stream)
            os.write(sink, typed)
            assert ask_person(3) == wanted

    def alive():
        raise RuntimeError("the session has ended")

    with os.fdopen(read, "rb", buffering=0) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        stream.read(10)
        with pytest.raises(RuntimeError, match="ended"):
            ask_person(4, alive)
        os.close(write)
        with pytest.raises(ConfigError, match="the input has ended"):
            ask_person(5)
    assert "did it succeed?" in capsys.readouterr().err
    os.close(ours)
    os.close(theirs)
