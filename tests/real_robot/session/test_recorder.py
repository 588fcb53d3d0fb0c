"""The recorder: what it writes, what survives a crash and a full disk, and that the bridge never waits."""

import dataclasses
import errno
import hashlib
import json

import h5py
import numpy as np
import pytest

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.cli import main
from flowpolicy.core.errors import ContractError, DataError
from flowpolicy.core.spec import Contract
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.normalize import Normalizer, NormalizerConfig
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import Direct
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.chunks import hermite
from flowpolicy.real_robot.bridge.ring_records import tick_type, unpack_chunk
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.session.episodes import INDEX
from flowpolicy.real_robot.session.outputs import compare_outputs, compare_workspace
from flowpolicy.real_robot.session.recorder import Recorder, salvage

from ..simulated import DT, LIMITS, Simulation

KEYS = ["robot0_joint_pos", "robot0_joint_vel", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "goal"]
META = {"env_args": ArmTaskConfig().env_args(), "keys": KEYS, "tool": LIMITS.tool, "rate_hz": 20.0}


@pytest.fixture
def sim(tmp_path, monkeypatch):
    return Simulation(tmp_path / "shm", monkeypatch)


def play(sim, recorder, number, seconds=1.5, success=True):
    sim.session.command("begin", number, [0.5, 0.1, 0.3])
    for _ in range(round(seconds / 0.1)):
        sim.run(0.1)
        recorder.drain()
    if success is not None:
        sim.session.command("end", int(success))
        sim.run(2 * DT)
        recorder.drain()


def test_an_episode_is_a_robomimic_file_that_says_what_happened(sim, tmp_path):
    recorder = Recorder(sim.session, tmp_path / "out", META)
    sim.running()
    play(sim, recorder, 1)
    play(sim, recorder, 2, success=False)
    assert (recorder.lost, recorder.failed) == (0, "")
    with h5py.File(tmp_path / "out" / "episode_0001.hdf5") as file:
        demo = file["data/demo_0"]
        ticks, rows = demo["ticks"][()], demo["robot/t_mono"][()]
        assert len(ticks) == pytest.approx(375, abs=2)
        np.testing.assert_allclose(np.diff(rows), 0.05, atol=DT)
        decided = {int(record["seq"]): unpack_chunk(record) for record in demo["decisions"][()]}
        in_force, taught = demo["robot/chunk"][()], 0
        # Row k is the state at its time, its action what the decision in force asks for until the next.
        for k in (0, 7, len(rows) - 2):
            at = ticks[np.searchsorted(ticks["t_mono"], rows[k])]
            later = ticks[np.searchsorted(ticks["t_mono"], rows[k + 1])]
            np.testing.assert_allclose(demo["obs/robot0_joint_pos"][k], at["q"], rtol=1e-6)
            tool = FR3.chain.forward(at["q"], LIMITS.tool).position
            np.testing.assert_allclose(demo["obs/robot0_eef_pos"][k], tool, rtol=1e-5)
            if (chunk := decided.get(int(in_force[k]))) is not None:
                # Before its first row a decision is on the way there: nothing of it is at rest.
                early = [min(t - chunk.t0, 0.0) / chunk.dt for t in (at["t_mono"], later["t_mono"])]
                ends = [hermite(chunk, t)[0] for t in (at["t_mono"], later["t_mono"])]
                step = ends[1] - ends[0] + (early[1] - early[0]) * (chunk.q[1] - chunk.q[0])
                np.testing.assert_allclose(demo["actions"][k, :7], step, atol=1e-12)
                # It agrees with the reference as long as one decision follows the other without a break.
                np.testing.assert_allclose(step, later["q_ref"] - at["q_ref"], atol=2e-3)
                taught += 1
        assert taught >= 2
        np.testing.assert_allclose(demo["obs/goal"][0], [0.5, 0.1, 0.3])
        assert demo["rewards"][-1] == 1.0
        assert len(demo["decisions"]) >= 7
        assert np.ptp(ticks["t_wall"]) > 0
        texts = [bytes(e["text"]).decode() for e in demo["events"]]
        assert "1 success" in texts
    # The index trains: one dataset over both files.
    dataset = load_dataset(DataConfig(path=str(tmp_path / "out" / INDEX)))
    assert len(dataset.lengths) == 2
    spec = ArmTaskConfig().spec()
    Contract(spec, 1, 8, 4, 1).require(dataset.spec, "the recording", "")
    good = load_dataset(DataConfig(path=str(tmp_path / "out" / INDEX), filter_key="successful"))
    assert len(good.lengths) == 1


def test_an_end_and_a_beginning_in_one_reading_are_told_apart(sim, tmp_path):
    recorder = Recorder(sim.session, tmp_path / "out", META)
    sim.running()
    play(sim, recorder, 1, success=None)
    sim.session.command("end", 1)
    sim.run(0.1)
    sim.session.command("begin", 2, [0.5, 0.1, 0.3])
    sim.run(0.5)
    recorder.drain()
    recorder.close()
    assert [path.name for path in sorted((tmp_path / "out").glob("e*"))] == ["episode_0001.hdf5", "episode_0002.hdf5"]


def test_what_was_written_before_a_crash_opens(sim, tmp_path):
    out = tmp_path / "out"
    recorder = Recorder(sim.session, out, META)
    sim.running()
    play(sim, recorder, 1, success=None)
    journal = out / ".episode_0001" / "ticks"
    # The process is gone; its last write got half way.
    with journal.open("r+b") as stream:
        stream.truncate(journal.stat().st_size - 100)
    del recorder
    assert salvage(out) == [out / "episode_0001.hdf5"]
    dataset = load_dataset(DataConfig(path=str(out / INDEX)))
    assert dataset.lengths.tolist()[0] >= 27
    assert not list(out.glob(".episode*"))


def test_a_full_disk_loses_the_rest_and_stops_nobody(sim, tmp_path):
    recorder = Recorder(sim.session, tmp_path / "out", META)
    sim.running()
    play(sim, recorder, 1, success=None)

    class Full:
        def __init__(self, stream):
            self.close = stream.close

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    recorder._journals["ticks"] = Full(recorder._journals["ticks"])
    sim.run(0.5)
    recorder.drain()
    assert "No space left" in sim.session.recorder.latest()["failed"].item().decode()
    assert sim.state is State.RUNNING
    rows = recorder.rows
    sim.session.command("end", 1)
    sim.run(2 * DT)
    recorder.drain()
    with h5py.File(tmp_path / "out" / "episode_0001.hdf5") as file:
        assert len(file["data/demo_0/ticks"]) == rows


def test_an_episode_that_held_nothing_costs_only_itself(sim, tmp_path):
    recorder = Recorder(sim.session, tmp_path / "out", META)
    sim.ready()
    play(sim, recorder, 1, seconds=0.2, success=False)
    assert "no whole period" in recorder.failed
    sim.command("stop").run(0.1).running()
    play(sim, recorder, 2)
    assert recorder.failed == ""
    assert [path.name for path in sorted((tmp_path / "out").glob("e*"))] == ["episode_0002.hdf5"]


def test_a_slow_recorder_loses_ticks_and_counts_them(sim, tmp_path):
    recorder = Recorder(sim.session, tmp_path / "out", META)
    sim.running()
    sim.session.command("begin", 1, [0.5, 0, 0.3])
    record = sim.session.ticks.latest()
    before = recorder._cursors["ticks"]
    for _ in range(5000):
        sim.session.ticks.write(record)
    written = sim.session.ticks.count - before
    recorder.drain()
    # The ring keeps 4096 records, the one being overwritten next excepted.
    assert recorder.lost == written - 4095


def test_recordings_whose_quaternions_have_the_old_sign_train_nothing_that_looks_at_them(sim, tmp_path):
    old = {key: value for key, value in META["env_args"].items() if key != "observation_units"}
    for name, env_args in (("old", old), ("new", META["env_args"])):
        recorder = Recorder(sim.session, tmp_path / name, {**META, "env_args": env_args})
        sim.run(0.1) if sim.ticks else sim.running()
        play(sim, recorder, 1, seconds=0.5)
    spec = ArmTaskConfig().spec()

    def check(name, *keys):
        dataset = load_dataset(DataConfig(path=str(tmp_path / name / INDEX), obs_keys=keys))
        seen = dataclasses.replace(spec, observation={key: spec.observation[key] for key in keys})
        Contract(seen, 1, 8, 4, 1).require(dataset.spec, "the recording", "")

    check("new", "robot0_eef_quat")
    check("old", "robot0_joint_pos")
    with pytest.raises(ContractError, match="w >= 0"):
        check("old", "robot0_eef_quat")


def salvaged(out):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        main(["robot", "salvage", str(out)])
    return ended.value.code


def lose(ticks):
    return np.delete(ticks, slice(150, 250))


def repeat(ticks):
    return np.insert(ticks, [150] * 40, ticks[150])


def go_back(ticks):
    ticks["t_mono"][200:] -= 0.3
    return ticks


def hold_no_numbers(ticks):
    ticks["q"][150:160, 3] = np.nan
    ticks["t_mono"][300] = np.inf
    return ticks


def tear(ticks):
    ticks[120:160] = np.zeros((), tick_type(FR3.joints))  # a block that a crash of the machine left empty
    return ticks


@pytest.mark.parametrize(("damage", "demos"), [(lose, 2), (repeat, 1), (go_back, 2), (hold_no_numbers, 2), (tear, 2)])
def test_a_gap_in_the_ticks_is_cut_and_told_and_no_row_is_made_up(sim, tmp_path, damage, demos, capsys):
    out = tmp_path / "out"
    recorder = Recorder(sim.session, out, META)
    sim.running(amplitude=0.3)
    play(sim, recorder, 1, success=None)
    play(sim, recorder, 2, success=True)
    with h5py.File(out / "episode_0001.hdf5") as file:
        largest = np.abs(file["data/demo_0/actions"][:, :7]).max()
    # The first episode again, as a session that crashed would have left it.
    home = out / ".episode_0001"
    home.mkdir()
    with h5py.File(out / "episode_0001.hdf5") as file:
        for name, key in (("ticks", "ticks"), ("chunks", "decisions"), ("events", "events")):
            records = file[f"data/demo_0/{key}"][()]
            (damage(records) if name == "ticks" else records).tofile(home / name)
    (home / "meta.json").write_text(json.dumps(META))
    (out / "episode_0001.hdf5").unlink()
    assert salvaged(out) == 0
    assert (f"{demos} demonstrations of it remain" in capsys.readouterr().out) == (demos > 1)
    with h5py.File(out / INDEX) as file:
        assert len(file["data"]) == demos + 1
        for part in range(demos):
            demo = file[f"data/demo_{part}"]
            between = np.diff(demo["robot/t_mono"][()])
            assert (between > 0.02).all() and (between < 0.08).all()
            assert np.isfinite(demo["actions"][()]).all()
            assert np.abs(demo["actions"][:, :7]).max() < 1.6 * largest
            assert np.isfinite(demo["obs/robot0_joint_pos"][()]).all()
    assert len(load_dataset(DataConfig(path=str(out / INDEX))).lengths) == demos + 1


def test_the_index_says_of_which_episodes_it_is_and_salvage_writes_it_anew(sim, tmp_path, capsys):
    out = tmp_path / "out"
    recorder = Recorder(sim.session, out, META)
    sim.running()
    for number in (1, 2, 3):
        play(sim, recorder, number, seconds=0.5)

    def stated():
        with h5py.File(out / INDEX) as file:
            return json.loads(file["data"].attrs["episodes_sha256"]), len(file["data"])

    def present():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("episode_*.hdf5")}

    assert stated() == (present(), 3)
    index = DataConfig(path=str(out / INDEX))
    whole = load_dataset(index).sha256
    (out / "episode_0002.hdf5").rename(out / "elsewhere")
    with pytest.raises(DataError, match=r"missing: episode_0002.hdf5"):
        load_dataset(index)
    (out / "elsewhere").rename(out / "episode_0002.hdf5")
    assert load_dataset(index).sha256 == whole
    (out / "episode_0002.hdf5").unlink()
    with h5py.File(out / "episode_0003.hdf5", "a") as file:
        file["data/demo_0/actions"][:] *= 0.5
    with pytest.raises(DataError, match=r"missing: episode_0002.hdf5; changed: episode_0003.hdf5"):
        load_dataset(index)
    # The remedy that the error names.
    assert salvaged(out) == 0
    assert stated() == (present(), 2)
    changed = load_dataset(index)
    assert len(changed.lengths) == 2
    assert changed.sha256 != whole
    with h5py.File(out / "episode_0003.hdf5", "a") as file:
        file["data"].attrs["env_args"] = json.dumps({**META["env_args"], "env_version": "1"})
    assert salvaged(out) == 2
    assert "env_version" in capsys.readouterr().err


def test_journals_that_cannot_be_read_are_kept(sim, tmp_path, capsys):
    out = tmp_path / "out"
    recorder = Recorder(sim.session, out, META)
    sim.running()
    play(sim, recorder, 1, success=None)
    home = out / ".episode_0001"
    (home / "meta.json").write_text("")
    assert salvaged(out) == 0
    assert "was left as it is" in capsys.readouterr().err
    (home / "meta.json").write_text(json.dumps(META))
    assert salvaged(out) == 0
    assert (out / "episode_0001.hdf5").exists()


def test_a_policy_that_moves_what_never_moved_is_found_before_the_arm_moves(sim, tmp_path):
    recorder = Recorder(sim.session, tmp_path / "out", META)
    sim.running()
    play(sim, recorder, 1)
    dataset = load_dataset(DataConfig(path=str(tmp_path / "out" / INDEX)))
    shapes = {key: spec.shape[0] for key, spec in dataset.spec.observation.items()}
    # A new network says the middle of its range. Unscaled, as policies of before had a gripper that never moved, that
    # is shut; scaled to the data it is what they hold.
    config = PolicyConfig(DM1().net, DM1().encoder, Direct())
    made = Contract(ArmTaskConfig().spec(), history=2, chunk=8, execute=4, nfe=1)
    (told,) = [
        line for line in compare_outputs(Policy(config, made, Normalizer(shapes, 8)), dataset) if "gripper" in line
    ]
    assert "from 0.000 to 0.000 m where the data hold 0.080 to 0.080, in 100 %" in told
    with pytest.warns(UserWarning, match="near-constant"):
        fitted = Normalizer.fit(dataset, NormalizerConfig())
    assert compare_outputs(Policy(config, made, fitted), dataset) == []
    assert compare_workspace(dataset, LIMITS) == []
    (told,) = compare_workspace(dataset, policy_limits(FR3, table=0.6, tool=LIMITS.tool))
    assert "100 % of the recorded positions" in told
