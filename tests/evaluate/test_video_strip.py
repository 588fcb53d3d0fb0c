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
    assert len(made) == 6 and all(frame.shape == (64, 64 + 32 + 64, 3) for frame in made)
    for step, frame in enumerate(made):
        assert np.array_equal(frame[:, :64], scenes[step])
        assert np.array_equal(frame[:32:4, 64:96:4], seen[min(step // 3, 1)]["a_image"])
        assert not frame[32:, 64:96].any()
    assert not np.array_equal(made[0][:, 96:], made[4][:, 96:])
