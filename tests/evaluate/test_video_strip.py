"""A film shows the scene, the very pixels that were decided on, and the actions."""

import numpy as np

from flowpolicy.evaluate.video_strip import strips

from .fakes import episode


def test_every_frame_shows_what_the_last_decision_saw_pixel_by_pixel():
    random = np.random.default_rng(0)
    scenes = tuple(random.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(6))
    seen = [
        {"a_image": random.integers(0, 256, (8, 8, 3), np.uint8), "b_image": np.zeros((16, 16, 3), np.uint8)}
        for _ in range(2)
    ]
    decisions = [(each, random.uniform(-1, 1, (4, 2))) for each in seen]
    made = strips(episode(length=5, frames=scenes), decisions, execute=3)
    assert len(made) == 6 and all(frame.shape == (64, 64 + 2 + 31 + 2 + 64, 3) for frame in made)
    for step, frame in enumerate(made):
        assert np.array_equal(frame[:, :64], scenes[step])
        every = np.arange(31) * 8 // 31
        assert np.array_equal(frame[:31, 66:97], seen[min(step // 3, 1)]["a_image"][every][:, every])
        assert not frame[31:, 64:99].any()
    assert not np.array_equal(made[0][:, 99:], made[4][:, 99:])


def test_actions_are_drawn_within_their_range():
    scene, seen = (np.zeros((64, 64, 3), np.uint8),) * 3, {"a_image": np.zeros((8, 8, 3), np.uint8)}
    unit = [(seen, np.array([[0.0, 0.5], [0.5, -1.0]]))]
    board = [(seen, 256 * (unit[0][1] + 1))]
    expected = strips(episode(length=2, frames=scene), unit, execute=2)
    for one, other in zip(strips(episode(length=2, frames=scene), board, 2, (0.0, 512.0)), expected, strict=True):
        assert np.array_equal(one, other)
