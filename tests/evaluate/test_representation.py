"""Figures of features against closed forms."""

import math

import numpy as np
import pytest

from flowpolicy.evaluate.representation import (
    KnownScene,
    Sample,
    confusable,
    cosines,
    figures,
    linear_probe,
    look_alikes,
    participation_ratio,
    rank_me,
    signal_over_augmentation,
    spectrum,
    uniformity,
)

SIZE = 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def orthonormal(rng, rows, size):
    """Rows whose columns are orthonormal and centred: equal singular values."""
    values = rng.normal(size=(rows, size))
    return np.linalg.qr(values - values.mean(0))[0]


def test_equal_singular_values_have_the_rank_of_their_dimension(rng):
    features = orthonormal(rng, 200, SIZE)
    assert participation_ratio(features) == pytest.approx(SIZE)
    assert rank_me(features, centred=True) == pytest.approx(SIZE)
    assert rank_me(features, centred=False) == pytest.approx(SIZE)
    np.testing.assert_allclose(spectrum(features), 1.0)


def test_an_isotropic_gaussian_has_nearly_the_rank_of_its_dimension(rng):
    features, size, rows = rng.normal(size=(4000, 16)), 16, 4000
    assert rank_me(features, centred=True) == pytest.approx(size, rel=0.01)
    assert participation_ratio(features) == pytest.approx(size / (1 + size / rows), rel=0.01)


def test_rows_on_a_line_have_rank_one_and_equal_rows_none(rng):
    line = np.outer(rng.normal(size=300), rng.normal(size=SIZE)).astype(np.float32)
    assert participation_ratio(line) == pytest.approx(1.0)
    assert rank_me(line, centred=True) == pytest.approx(1.0)
    equal = np.tile(rng.normal(size=SIZE).astype(np.float32), (300, 1))
    assert participation_ratio(equal) == rank_me(equal, centred=True) == 0.0
    assert rank_me(equal, centred=False) == pytest.approx(1.0)
    assert not spectrum(equal).any()


def test_two_singular_values_give_the_entropy_of_their_shares(rng):
    features = orthonormal(rng, 100, 2) * [3.0, 1.0]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rank_me(features, centred=True) == pytest.approx(math.exp(entropy))
    assert participation_ratio(features) == pytest.approx(100 / 82)


def test_a_simplex_is_as_far_apart_as_can_be():
    corners = np.eye(5) - 1 / 5
    assert cosines(corners) == pytest.approx(-1 / 4)
    assert uniformity(np.array([[2.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8.0)  # antipodes: log exp(-2 * 2^2)
    assert uniformity(np.ones((4, 3))) == pytest.approx(0.0)


def test_signal_over_augmentation_of_noise_is_one_and_of_what_windows_do_not_change_is_infinite(rng):
    first, second = rng.normal(size=(2, 3000, 64))
    assert signal_over_augmentation(first, first, second) == pytest.approx(1.0, rel=0.02)
    assert signal_over_augmentation(first, first, 3 * first) == math.inf
    # Orthogonal rows turned by a known angle: 2 over 2 - 2 cos.
    turned = np.eye(8) * math.cos(0.3) + np.roll(np.eye(8), 1, axis=1) * math.sin(0.3)
    assert signal_over_augmentation(np.eye(8), np.eye(8), turned) == pytest.approx(2 / (2 - 2 * math.cos(0.3)))


def test_the_probe_reads_a_pose_that_is_there_and_not_one_that_is_not(rng):
    episode = np.repeat(np.arange(20), 30)
    pose = rng.normal(size=(600, 3)) * 20
    mixed = pose @ rng.normal(size=(3, SIZE)) + 5
    known = linear_probe(mixed.astype(np.float32), pose, episode)
    assert known.r2 > 0.999 and known.rmse < 0.02 * known.baseline
    assert known.baseline == pytest.approx(20 * math.sqrt(3), rel=0.05)
    unknown = linear_probe(rng.normal(size=(600, SIZE)), pose, episode)
    assert abs(unknown.r2) < 0.1
    constant = linear_probe(np.ones((600, SIZE), np.float32) / 3, pose, episode)
    assert constant.r2 == pytest.approx(0.0) and constant.rmse == pytest.approx(constant.baseline)


def test_the_probe_is_judged_on_other_episodes_than_it_was_fitted_to(rng):
    # Features that name the episode know its pose by heart, and nothing of another one's.
    episode = np.repeat(np.arange(10), 20)
    pose = np.repeat(rng.normal(size=(10, 3)), 20, axis=0)
    assert linear_probe(np.eye(10)[episode], pose, episode).r2 < 0.1


def test_confusable_pairs_are_those_that_differ_in_the_object_alone_and_look_alike():
    thing = np.array([[0.0, 0, 0], [20.0, 0, 0], [20.0, 0, 0], [0, 5.0, 0]])
    hand = np.array([[0.0, 0, 0], [0, 0, 4.0], [0, 0, 50.0], [0, 0, 0]])
    pairs = look_alikes(KnownScene(thing, hand))
    assert pairs.tolist() == [True, False, False, False, True, False]  # of (0, 1) ... and (1, 3)
    features = np.array([[1.0, 0], [1.0, 1e-4], [0, 1.0], [0, 1.0]])
    step = Sample(features, None, features + 1e-3 * np.array([[0.0, 1], [0, 1], [1, 0], [1, 0]]))
    assert confusable(step, pairs) == 0.5  # (0, 1) looks alike, (1, 3) does not
    collapsed = np.ones((4, 2), np.float32)
    assert confusable(Sample(collapsed, None, collapsed), pairs) == 1.0
    assert math.isnan(confusable(step, look_alikes(KnownScene(thing, None))))


def test_what_nothing_is_known_of_is_no_number(rng):
    features = rng.normal(size=(80, SIZE))
    found = figures(Sample(features, None, features), np.repeat([0, 1], 40), None)
    assert math.isnan(found.probe_mm) and math.isnan(found.confusable) and math.isnan(found.signal_over_augmentation)
    assert found.size == SIZE and found.participation_ratio > 1
