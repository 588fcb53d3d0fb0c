import sys

import numpy as np
import pytest

from flowpolicy.core.errors import EvaluationError, MissingExtraError
from flowpolicy.evaluate.video import BAR, BORDER, FAILED, PLAYING, SUCCEEDED, decorate, save_video

from .fakes import episode


def recorded(height, width, success_step):
    frames = [np.full((height, width, 3), 20 * i, dtype=np.uint8) for i in range(11)]
    return episode(success_step=success_step, frames=frames)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_border_tells_the_outcome_and_bar_the_time(height, width):
    played = recorded(height, width, 6)
    pictures = [decorate(played, step) for step in range(11)]
    assert [tuple(p[0, 0]) for p in pictures] == [PLAYING] * 6 + [SUCCEEDED] * 5
    for step, picture in enumerate(pictures):
        assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
        assert np.array_equal(picture[BORDER : BORDER + height, BORDER : BORDER + width], played.frames[step])
        bar = picture[BORDER + height : BORDER + height + BAR, BORDER : BORDER + width]
        assert np.mean(bar == 255) == pytest.approx(step / 10, abs=0.5 / width)


def test_a_failure_ends_in_its_colour():
    pictures = [decorate(recorded(32, 48, None), step) for step in range(11)]
    assert [tuple(p[0, 0]) for p in pictures] == [PLAYING] * 10 + [FAILED]


def test_video_is_h264_yuv420p_with_every_frame(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    path = save_video(tmp_path, 7, recorded(63, 81, 6), fps=20.0)
    assert path.name == "episode_0007_success.mp4"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with imageio.get_reader(path) as reader:
        about = reader.get_meta_data()
    pictures = imageio.mimread(path)
    assert about["codec"] == "h264"
    assert about["pix_fmt"].startswith("yuv420p")
    assert about["fps"] == pytest.approx(20.0)
    assert len(pictures) == 11
    assert pictures[0].shape == (78, 90, 3)
    assert np.abs(pictures[5][10:60, 10:70].astype(float) - 100.0).mean() < 4.0


def test_failures_are_named_failures(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    assert save_video(tmp_path, 12, recorded(32, 48, None), fps=20.0).name == "episode_0012_failure.mp4"


def test_a_video_of_a_task_without_success_speaks_of_none(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    played = recorded(32, 48, None)
    assert save_video(tmp_path, 12, played, 20.0, success_defined=False).name == "episode_0012.mp4"
    assert tuple(decorate(played, 10, success_defined=False)[0, 0]) == PLAYING


def test_an_episode_without_frames_is_an_error(tmp_path):
    with pytest.raises(EvaluationError, match="episode 3 has no frames"):
        save_video(tmp_path, 3, episode(), fps=20.0)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match=r"flowpolicy\[video\]"):
        save_video(tmp_path, 3, recorded(32, 48, None), fps=20.0)
    assert not list(tmp_path.iterdir())
