"""Cameras of V4L2 by a stand-in for OpenCV's capture, and video files."""

import time

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.real_robot.cameras.camera_setup import parse_camera
from flowpolicy.real_robot.drivers.driver_protocols import RobotError

cv2 = pytest.importorskip("cv2")

from flowpolicy.real_robot.cameras.opencv_cameras import UvcCamera, VideoCamera  # noqa: E402


class StandIn:
    """A device: blue pictures, settings that it takes or does not, and a plug that can be pulled."""

    def __init__(self, stubborn=()):
        self.settings, self.stubborn, self.plugged, self.released, self.taken = {}, stubborn, True, False, 0

    def isOpened(self):
        return self.plugged

    def set(self, key, value):
        if key not in self.stubborn:
            self.settings[key] = value

    def get(self, key):
        return 1e3 * time.monotonic() if key == cv2.CAP_PROP_POS_MSEC else self.settings.get(key, 7.0)

    def read(self):
        if not self.plugged:
            return False, None
        time.sleep(0.005)
        self.taken += 1
        rgb = np.zeros((4, 6, 3), np.uint8)
        rgb[..., 0] = 200
        return True, rgb

    def release(self):
        self.released = True


def wait(condition):
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_device_is_set_up_read_newest_first_and_opened_anew_when_it_is_back():
    devices = [StandIn()]
    setup = parse_camera("front=uvc:/dev/v4l/by-id/usb-C920-index0,size=640x480,rate=30,exposure=156")
    opened = []

    def capture(device):
        opened.append(device)
        return devices[-1]

    camera = UvcCamera(setup, capture)
    camera.start()
    assert opened == ["/dev/v4l/by-id/usb-C920-index0"]
    wanted = {
        cv2.CAP_PROP_BUFFERSIZE: 1,
        cv2.CAP_PROP_FRAME_WIDTH: 640,
        cv2.CAP_PROP_FRAME_HEIGHT: 480,
        cv2.CAP_PROP_FPS: 30.0,
        cv2.CAP_PROP_AUTO_EXPOSURE: 1,  # V4L2: manual
        cv2.CAP_PROP_EXPOSURE: 156.0,
    }
    assert devices[0].settings == wanted
    wait(lambda: camera.latest().seq > 3)
    frame = camera.latest()
    # OpenCV gives blue green red; what is seen is red green blue.
    assert frame.rgb[0, 0].tolist() == [0, 0, 200]
    assert frame.t_mono <= time.monotonic()
    devices[0].plugged = False
    wait(lambda: devices[0].released)
    last = camera.latest().seq
    devices.append(StandIn())
    wait(lambda: camera.latest().seq > last)
    camera.close()


def test_a_device_that_is_not_there_or_takes_other_settings_is_refused():
    unplugged = StandIn()
    unplugged.plugged = False
    with pytest.raises(RobotError, match="cannot be opened"):
        UvcCamera(parse_camera("front=uvc:0"), lambda device: unplugged).start()
    stubborn = StandIn(stubborn=(cv2.CAP_PROP_EXPOSURE,))
    with pytest.raises(ConfigError, match="does not take exposure 156, it says 7"):
        UvcCamera(parse_camera("front=uvc:0,exposure=156"), lambda device: stubborn).start()
    assert stubborn.released


def test_a_video_is_shown_at_its_pace_and_its_last_picture_stays(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (32, 16))
    for value in (20, 80, 140, 200):
        picture = np.zeros((16, 32, 3), np.uint8)
        picture[..., 0] = value  # blue
        writer.write(picture)
    writer.release()
    t = [5.0]
    camera = VideoCamera(path, clock=lambda: t[0])
    assert camera.latest() is None
    assert camera.facts.rate_hz == pytest.approx(10.0)
    camera.start()
    shown = []
    for now in (5.0, 5.11, 5.29, 5.31, 9.0, 9.5):
        t[0] = now
        frame = camera.latest()
        shown.append((frame.seq, round(frame.t_mono, 2), int(np.round(frame.rgb[8, 16, 2] / 10.0))))
    assert [one[0] for one in shown] == [0, 1, 2, 3, 3, 3]
    assert [one[1] for one in shown] == [5.0, 5.1, 5.2, 5.3, 5.3, 5.3]
    np.testing.assert_allclose([one[2] for one in shown], [2, 8, 14, 20, 20, 20], atol=1)
    assert camera.latest().rgb[..., 0].max() < 40
    camera.close()
    for wrong in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(DataError, match="is no file"):
            VideoCamera(wrong)
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(DataError, match="no video that can be read"):
        VideoCamera(tmp_path / "text.mp4")
