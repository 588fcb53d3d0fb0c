import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.core.streams import STATES, Layout
from flowpolicy.flows.dispersive import Dispersive, dispersive_loss
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder

OBSERVATION = {"a": ObservationSpec((3,)), "b": ObservationSpec((2,))}


def observed(rows):
    return {"a": torch.randn(rows, 2, 3), "b": torch.randn(rows, 2, 2)}


def test_condition_is_projection_and_observation():
    torch.manual_seed(0)
    encoder, streams = StateEncoder(width=12).build(OBSERVATION, 2), observed(4)
    cond, features = encoder(streams)
    feature = features[STATES]
    assert cond.shape == (4, encoder.size) == (4, 22)
    # A row: the older observation of every key, then the newer one.
    rows = torch.cat([streams["a"], streams["b"]], dim=2).flatten(1)
    assert torch.equal(cond, torch.cat([feature, rows], dim=1))


def test_width_zero_passes_through():
    encoder, streams = StateEncoder(width=0).build(OBSERVATION, 2), observed(4)
    assert encoder.size == 10 and not list(encoder.parameters())
    assert encoder(streams).cond[:, :5].tolist() == torch.cat([streams["a"], streams["b"]], dim=2)[:, 0].tolist()


def test_packed_streams_are_read_as_they_are():
    encoder, streams, layout = StateEncoder(width=12).build(OBSERVATION, 2), observed(4), Layout(OBSERVATION)
    packed = layout.pack({**streams, "other": torch.zeros(4, 2, 1)})
    assert [value.shape for value in packed.values()] == [(4, 2, 5)]
    assert layout.pack(packed) == packed
    assert torch.equal(encoder(packed).cond, encoder(streams).cond)


def test_a_picture_is_refused_with_what_to_do():
    wrist = ObservationSpec((3, 84, 84), kind="image", dtype="uint8", channels="first", camera="wrist")
    with pytest.raises(ConfigError, match="the observation 'wrist', a picture") as error:
        StateEncoder().build({**OBSERVATION, "wrist": wrist}, 1)
    assert "--data.obs-keys a b" in str(error.value)
    with pytest.raises(ConfigError, match="the observation 'wrist', a picture"):
        CriticConfig().build({"wrist": wrist}, 1)


def test_dispersive_gradient_reaches_every_weight_of_the_encoder():
    """The published DM1 computed its features without a gradient."""
    torch.manual_seed(0)
    encoder = StateEncoder(width=12).build(OBSERVATION, 2)
    value = dispersive_loss(encoder(observed(16)).features[STATES], Dispersive())
    for gradient in torch.autograd.grad(value, list(encoder.parameters())):
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-6
