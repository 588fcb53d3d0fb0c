"""Encoders of pictures: what they see, that a row depends on nothing else, and that every weight learns."""

import dataclasses

import pytest
import torch
from torch import nn

from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import write_tensors
from flowpolicy.core.spec import ImageSpec
from flowpolicy.core.streams import STATES, Crop
from flowpolicy.nets.backbones import BACKBONES, Impala, ResNet, SmallConv, SpatialSoftmax, TokenTransformer
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.vision import VisionEncoder, begin_with, middle, scaled
from tests.pictures import CAMERAS, OBSERVATION, SIDE, observed

SMALL = {
    "conv": SmallConv(width=8, keypoints=8, feature=6),
    "resnet": ResNet(width=16, keypoints=8, feature=6),
    "vit": TokenTransformer(width=16, heads=2, feature=6),
    "impala": Impala(widths=(4, 4), feature=6),
}


def encoder_of(name="conv", history=1, observation=OBSERVATION, **options):
    torch.manual_seed(0)
    return VisionEncoder(backbone=SMALL[name], width=10, **options).build(observation, history)


@pytest.mark.parametrize("name", SMALL)
def test_a_row_depends_on_itself_alone(name):
    encoder, streams = encoder_of(name, history=2), observed(5, history=2)
    whole = encoder(streams)
    assert whole.cond.shape == (5, encoder.size) and encoder.size == 10 + 2 * (3 + 6 + 6)
    assert {key: tuple(value.shape) for key, value in whole.features.items()} == dict.fromkeys(CAMERAS, (5, 12))
    one = encoder({key: value[2:3] for key, value in streams.items()})
    torch.testing.assert_close(one.cond, whole.cond[2:3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns_the_first_layer_too(name):
    encoder = encoder_of(name)
    encoder(observed(3)).cond.square().sum().backward()
    still = [key for key, value in encoder.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    assert not still


@pytest.mark.parametrize("name", BACKBONES)
def test_no_statistics_of_a_batch(name):
    network = dataclasses.replace(BACKBONES[name], **({"width": 64} if name == "resnet" else {})).build(76, 76)
    assert not [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    assert not dict(network.named_buffers())
    assert network(torch.zeros(1, 3, 76, 76)).shape == (1, BACKBONES[name].feature)


@pytest.mark.parametrize("place", [(3, 7), (20, 0), (15, 15)])
def test_the_keypoint_of_a_blob_is_where_it_is(place):
    maps = torch.full((1, 1, 32, 48), -100.0)
    maps[0, 0, place[0], place[1]] = 100.0
    x, y = SpatialSoftmax()(maps)[0]
    assert abs(x - (2 * place[1] / 47 - 1)) < 1 / 64 and abs(y - (2 * place[0] / 31 - 1)) < 1 / 64
    level = SpatialSoftmax()(torch.zeros(1, 2, 5, 5))
    torch.testing.assert_close(level, torch.zeros(1, 4))


def test_another_picture_of_one_camera_changes_its_features_alone():
    encoder, streams = encoder_of(), observed(3)
    other = streams | {"wrist_image": 255 - streams["wrist_image"]}
    before, after = encoder(streams).features, encoder(other).features
    torch.testing.assert_close(before["front_image"], after["front_image"], atol=0, rtol=0)
    assert not torch.allclose(before["wrist_image"], after["wrist_image"])


def test_one_network_may_serve_all_cameras():
    shared = encoder_of(share=True)
    assert len(shared.cameras) == 1 and len(encoder_of().cameras) == 2
    streams = observed(2)
    same = shared(streams | {"wrist_image": streams["front_image"]}).features
    torch.testing.assert_close(same["front_image"], same["wrist_image"])
    wide = {**OBSERVATION, "wrist_image": ImageSpec((SIDE, 2 * SIDE, 3))}
    with pytest.raises(ConfigError, match="differ in size"):
        encoder_of(share=True, observation=wide)


def test_the_middle_is_seen_whether_it_was_cut_out_before_or_not():
    encoder, streams = encoder_of(crop=0.5), observed(2)
    crop = encoder.crops["front_image"]
    assert crop == Crop(SIDE // 2, SIDE // 2)
    cut = {key: value[:, :, 9:27, 9:27] if key in CAMERAS else value for key, value in streams.items()}
    torch.testing.assert_close(encoder(streams).cond, encoder(cut).cond, atol=0, rtol=0)
    corner = {key: value[:, :, :18, :18] if key in CAMERAS else value for key, value in streams.items()}
    assert not torch.allclose(encoder(streams).cond, encoder(corner).cond)


def test_pixels_are_scaled_and_stay_channels_last():
    pictures = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 4, 3)
    numbers = scaled(middle(pictures, Crop(2, 2)))
    torch.testing.assert_close(numbers, torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2))
    assert numbers.is_contiguous(memory_format=torch.channels_last)


def test_states_and_pictures_side_by_side():
    encoder, streams = encoder_of(), observed(2)
    found = encoder(streams)
    torch.testing.assert_close(found.cond[:, 10:13], streams["state"].flatten(1))
    torch.testing.assert_close(found.cond[:, 13:], torch.cat([*found.features.values()], 1))
    packed = encoder(encoder.layout.pack(streams))
    torch.testing.assert_close(found.cond, packed.cond, atol=0, rtol=0)
    alone = encoder_of(observation={key: OBSERVATION[key] for key in CAMERAS})
    assert alone({key: streams[key] for key in CAMERAS}).cond.shape == (2, 10 + 12)
    assert STATES not in found.features


def test_what_cannot_be_read_is_refused_in_words():
    with pytest.raises(ConfigError, match="given states alone"):
        VisionEncoder().build({"state": OBSERVATION["state"]}, 1)
    first = ImageSpec((3, 84, 84), channels="first")
    with pytest.raises(ConfigError, match="cannot read the observation 'front_image'"):
        VisionEncoder().build({"front_image": first}, 1)
    with pytest.raises(ConfigError, match="4 pixels for the backbone SmallConv"):
        VisionEncoder().build({"front_image": ImageSpec((4, 4, 3))}, 1)


def test_a_critic_sees_once_for_many_chunks_and_is_not_taught_by_who_climbs_it():
    torch.manual_seed(0)
    critic = CriticConfig(width=8, depth=1).build(OBSERVATION, 1, 8, VisionEncoder(backbone=SMALL["conv"], width=10))
    seen = []
    critic.encoder.register_forward_hook(lambda *args: seen.append(len(args[2].cond)))
    streams, chunks = observed(3), torch.randn(6, 4, 2, requires_grad=True)
    values = critic.value(streams, chunks)
    assert values.shape == (6,) and seen == [3]
    values.sum().backward()
    assert chunks.grad is not None and all(parameter.grad is None for parameter in critic.parameters())
    for row, rows in enumerate(values.split(2)):
        one = {key: value[row : row + 1] for key, value in streams.items()}
        torch.testing.assert_close(critic.value(one, chunks[2 * row : 2 * row + 2]), rows)
    critic(streams, chunks[::2]).sum().backward()
    assert all(parameter.grad is not None for parameter in critic.encoder.cameras.parameters())
    target = critic.target()
    assert target.encoder is not critic.encoder
    torch.testing.assert_close(target.value(streams, chunks), values)


def test_a_resnet_begins_with_weights_that_are_named_as_torchvision_names_them(tmp_path):
    path = tmp_path / "resnet.safetensors"
    config = VisionEncoder(backbone=ResNet(width=16, keypoints=4, feature=4), weights=str(path))
    given = config.build(OBSERVATION, 1).cameras[0][0].state_dict()
    given = {name: torch.randn(value.shape) for name, value in given.items()}
    extra = {"fc.weight": torch.zeros(2), "bn1.running_mean": torch.zeros(16)}
    write_tensors(path, given | extra)
    encoder = config.build(OBSERVATION, 1)
    assert len(begin_with(encoder, config)) == 2
    for camera in encoder.cameras:
        torch.testing.assert_close(camera[0].state_dict(), given)
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.1.weight"} < given.keys()
    del given["layer4.1.bn2.bias"]
    write_tensors(path, given)
    with pytest.raises(CheckpointError, match=r"layer4\.1\.bn2\.bias is missing"):
        begin_with(encoder, config)
    with pytest.raises(ConfigError, match="no ResNet"):
        begin_with(encoder, dataclasses.replace(config, backbone=SmallConv()))
