"""What is made of the ticks of the bridge's sessions; the sessions themselves are those of every other test."""

import numpy as np

from flowpolicy.bench import bridge_lateness
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.ring_records import tick_type
from flowpolicy.real_robot.cameras.cameras import CameraLevels, replay_from


def session(late_ms, cameras=None):
    ticks = np.zeros(len(late_ms), tick_type(FR3.joints))
    ticks["lateness"], ticks["compute"] = 1e-3 * np.array(late_ms), 2e-4
    ticks["missed"] = np.arange(len(ticks))
    return {"ticks": ticks, "written": ticks[:50], "chunks": 7, "cameras": cameras or {}}


def test_percentiles_are_over_all_ticks_of_a_kind_and_every_kind_has_a_row(tmp_path, monkeypatch):
    rounds = iter(
        [
            session(np.linspace(0.0, 1.0, 101)),
            session(np.zeros(101), {"front": CameraLevels(20, 1, 2.0, 3.0, 50.0)}),
            session(np.linspace(1.0, 2.0, 101)),
            session(np.zeros(101), {"front": CameraLevels(21, 0, 2.0, 9.0, 50.0)}),
        ]
    )
    asked = []

    def play(setup, folder, seconds, engine):
        asked.append(len(setup.cameras))
        return next(rounds)

    monkeypatch.setattr(bridge_lateness, "_session", play)
    monkeypatch.setattr(bridge_lateness, "record_noise", lambda path, seconds, size: path)
    result = bridge_lateness.bench_bridge(seconds=2.0, rounds=2)
    assert asked == [0, 2, 0, 2]  # in turn: what else the machine does meets both
    off, on = result["kinds"]["cameras off"], result["kinds"]["two cameras"]
    assert abs(off["late_p50"] - 1.0) < 1e-9 and abs(off["late_max"] - 2.0) < 1e-9
    assert np.allclose(off["late_p99_rounds"], [0.99, 1.99])
    assert (off["ticks"], off["decisions"], off["missed"]) == (202, 14, 200)
    assert on["cameras"]["front"] == {"pictures": 41, "dropped": 1, "latency_p99": 9.0}
    assert bridge_lateness.bridge_table(result).row_count == 2


def test_the_noise_is_replayed_at_twenty_pictures_a_second(tmp_path):
    path = bridge_lateness.record_noise(tmp_path / "noise.hdf5", 1.0, 24)
    now = [5.0]
    camera = replay_from(path, "wrist", lambda: now[0])
    camera.start()
    now[0] += 0.52
    assert camera.latest().seq == 10
    assert camera.latest().rgb.shape == (24, 24, 3)
