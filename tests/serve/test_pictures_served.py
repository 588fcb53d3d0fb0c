"""A policy that sees, served: raw pixels and JPEG, and nothing decoded that is not of the contract's size."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from flowpolicy.core.errors import ServingError
from flowpolicy.policy import load_engine
from flowpolicy.serve.model import Model
from flowpolicy.serve.picture_codec import pictures_from
from tests.policy.engines.test_seeing_engines import seeing

from .conftest import serving

SHAPE = (1, 36, 36, 3)


def smooth(side=36, seed=0):
    """A picture that JPEG keeps nearly as it is."""
    x, y = np.meshgrid(*[np.linspace(0, 1, side)] * 2)
    tilt = np.random.default_rng(seed).uniform(0, 1, (3, 2))
    return np.stack([255 * (0.5 * a * x + 0.5 * b * y) for a, b in tilt], axis=-1).astype(np.uint8)


def jpeg(picture, **options):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", **{"quality": 95, "subsampling": 0} | options)
    return stream.getvalue()


def test_pixels_and_jpeg_reach_the_policy(tmp_path):
    policy = seeing()
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "eager")
    model = Model.prepare([engine], "step_1", (1,), rounds=1)
    assert model.form.pictures == {"front_image", "wrist_image"}
    state = np.ones((1, 3), np.float32)
    front, wrist = smooth(seed=1), smooth(seed=2)
    with serving(model) as running, running.client() as client:
        noise = np.zeros(model.form.noise, np.float32)
        raw = client.act({"state": state, "front_image": front[None], "wrist_image": wrist[None]}, 60_000, noise=noise)
        ours = engine.act(
            {"state": state[None], "front_image": front[None, None], "wrist_image": wrist[None, None]}, noise
        )
        assert np.array_equal(raw.chunk, ours[0])
        sent = {"state": state, "front_image": [jpeg(front)], "wrist_image": [jpeg(wrist)]}
        close = client.act(sent, 60_000, noise=noise)
        assert np.abs(close.chunk - raw.chunk).max() < 0.1
        with pytest.raises(ServingError, match="front_image holds pictures of float32"):
            client.act(
                {"state": state, "front_image": front[None] / np.float32(255), "wrist_image": wrist[None]}, 60_000
            )
        with pytest.raises(ServingError, match="wrist_image has the shape"):
            client.act({"state": state, "front_image": front[None], "wrist_image": wrist[None, :-1]}, 60_000)
        assert client.act(sent, 60_000, noise=noise).nfe == 1  # the connection goes on


def test_a_jpeg_decodes_to_its_pixels():
    picture = smooth()
    found = pictures_from({"jpeg": [jpeg(picture)]}, SHAPE, "front_image")
    assert found.shape == SHAPE and np.abs(found[0].astype(int) - picture).max() <= 4


def _claiming(data, height, width):
    """A JPEG whose header says another size: a few hundred bytes that ask for gigabytes."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"jpeg": [_claiming(jpeg(smooth()), 60_000, 60_000)]}, "no whole JPEG: Image size .3600000000 pixels"),
        ({"jpeg": [_claiming(jpeg(smooth()), 9_000, 9_000)]}, "a JPEG of 9000 x 9000 in RGB"),
        ({"jpeg": [_claiming(jpeg(smooth()), 37, 36)]}, "a JPEG of 37 x 36 in RGB"),
        ({"jpeg": [jpeg(smooth()[..., 0])]}, "in L"),
        ({"jpeg": [jpeg(smooth())[:-400]]}, "no whole JPEG"),
        ({"jpeg": [b"\x89PNG\r\n\x1a\n" + bytes(99)]}, "no whole JPEG"),
        ({"jpeg": [bytes(10**6)]}, "a JPEG of 1000000 bytes"),
        ({"jpeg": [jpeg(smooth())] * 2}, "no list of 1 JPEG"),
        ({"jpeg": ["text"]}, "no list of 1 JPEG"),
        ({"jpeg": jpeg(smooth())}, "no list of 1 JPEG"),
        ({"png": []}, "is no array"),
    ],
)
def test_what_is_no_picture_of_the_contract_is_refused_before_it_is_decoded(value, words, monkeypatch):
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size) or load(self))
    with pytest.raises(ServingError, match=words) as refused:
        pictures_from(value, SHAPE, "front_image")
    assert refused.value.code == "shape"
    assert all(size == (36, 36) for size in decoded)
