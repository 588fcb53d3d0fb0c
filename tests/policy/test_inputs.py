"""What a policy and its engines are asked: nothing is guessed, and what is wrong is named."""

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import numpy_generator, torch_generator
from flowpolicy.policy import load_engine
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.history import ObservationHistory
from flowpolicy.policy.inputs import require_committed, require_nfe, require_observations
from flowpolicy.policy.queue import ChunkQueue

from .engines.policies import SAMPLERS, make

NAN, INF = float("nan"), float("inf")


def observe(contract, rows=2):
    generator = numpy_generator(0, "inputs")
    shapes = contract.histories.items()
    return {key: generator.standard_normal((rows, *shape), dtype=np.float32) for key, shape in shapes}


WRONG = {
    "missing": (lambda o: {"state": o["state"]}, "'goal' is missing"),
    "no history": (lambda o: {**o, "goal": o["goal"][:, 0]}, "'goal' has shape"),
    "no rows": (lambda o: {**o, "goal": o["goal"][0]}, "'goal' has shape"),
    "one number for all": (lambda o: {**o, "goal": o["goal"][..., :1]}, "nothing is repeated"),
    "one row for all": (lambda o: {**o, "goal": o["goal"][:1]}, "'goal' has shape"),
    "a longer history": (lambda o: {**o, "goal": np.repeat(o["goal"], 2, 1)}, "'goal' has shape"),
    "an empty batch": (lambda o: {key: value[:0] for key, value in o.items()}, "has shape"),
    "complex": (lambda o: {**o, "goal": o["goal"].astype(np.complex64)}, "real numbers"),
    "NaN": (lambda o: {**o, "goal": o["goal"] * NAN}, "'goal' holds NaN"),
    "infinity": (lambda o: {**o, "goal": np.where(o["goal"] > 0, INF, o["goal"]).astype(np.float32)}, "'goal' holds"),
    "too large for float32": (lambda o: {**o, "goal": np.full(o["goal"].shape, 1e300)}, "'goal' holds"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_observations_are_named_by_everything_that_acts(case, contract, tmp_path):
    change, message = WRONG[case]
    policy, obs = make(contract), observe(contract)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy", batches=[2, 4])
    wrong = change(obs)
    tensors = {key: torch.from_numpy(value) for key, value in wrong.items()}
    for asked in (wrong, tensors):
        with pytest.raises(ConfigError, match=message):
            policy.act(asked, torch_generator(0))
        with pytest.raises(ConfigError, match=message):
            policy.act_from(asked, torch.zeros(2, contract.chunk, 2), 1)
    with pytest.raises(ConfigError, match=message):
        engine.act(wrong, engine.noise(2, numpy_generator(0)))


@pytest.mark.parametrize(
    "obs", [torch.zeros(1, 1, 2), [0.0, 0.0], {"a": [[[0.0, 0.0]]]}, {"a": None}, {"a": 1.0}, {"a": np.float32(1)}]
)
def test_what_is_no_mapping_of_arrays_is_refused(obs):
    with pytest.raises(ConfigError):
        require_observations(obs, {"a": (1, 2)})


@pytest.mark.parametrize("nfe", [0, -1, 10**9, 2.0, True, "2", NAN])
def test_numbers_of_evaluations_that_are_none_are_refused(nfe):
    with pytest.raises(ConfigError, match="nfe="):
        require_nfe(nfe)


def test_arrays_give_arrays_and_every_real_type_means_what_it_says(contract):
    policy, whole = make(contract), {key: np.rint(3 * value) for key, value in observe(contract).items()}
    tensors = {key: torch.from_numpy(value) for key, value in whole.items()}
    expected = policy.act(tensors, torch_generator(0))
    assert isinstance(expected, torch.Tensor)
    for kind in (np.float32, np.float64, np.float16, np.int64):
        array = policy.act({key: value.astype(kind) for key, value in whole.items()}, torch_generator(0))
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, expected.numpy())
    assert torch.equal(policy.act({k: v.double() for k, v in tensors.items()}, torch_generator(0)), expected)
    reversed_twice = {key: value[::-1].copy()[::-1] for key, value in whole.items()}
    assert np.array_equal(policy.act(reversed_twice, torch_generator(0)), expected.numpy())


def test_large_finite_observations_are_no_infinity(contract):
    policy = make(contract)
    obs = {key: torch.full((1, *shape), 3e38) for key, shape in contract.histories.items()}
    assert all(torch.equal(value, obs[key]) for key, value in policy.observed(obs).items())


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 1, 2), (2, 4, 1), (2, 4), (8, 4, 2), ()])
def test_noise_of_another_shape_is_refused(shape, contract, tmp_path):
    policy, obs = make(contract), observe(contract)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy", batches=[2])
    with pytest.raises(ConfigError, match="noise"):
        policy.act_from(obs, np.zeros(shape, np.float32), 1)
    if len(shape) == 3:  # of others the types that tests check speak first
        with pytest.raises(ConfigError, match="noise"):
            engine.act(obs, np.zeros(shape, np.float32))


def test_noise_and_commitments_that_are_not_finite_or_not_of_this_policy_are_refused(contract, tmp_path):
    policy, obs = make(contract, prefix=2), observe(contract)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy", batches=[2])
    noise = np.zeros((2, contract.chunk, 2), np.float32)
    with pytest.raises(ConfigError, match="noise holds NaN"):
        policy.act_from(obs, noise * NAN, 1)
    with pytest.raises(ConfigError, match="noise holds NaN"):
        engine.act(obs, noise * NAN)
    one, two = np.array([1, 2]), np.array([2, 2])
    unused = noise.copy()
    unused[:, 2:] = NAN  # rows that are not committed mean nothing
    assert np.isfinite(engine.act(obs, noise, unused, two)).all()
    for action, length in ((noise[..., :1], one), (noise[:, :2], one), (noise, one[:1])):
        with pytest.raises(ConfigError, match="committed"):
            require_committed(action, length, noise.shape, 2)
    for action, length in ((noise, -one), (unused * NAN, two)):
        with pytest.raises(ConfigError, match="committed"):
            engine.act(obs, noise, action, length)
        lengths = torch.from_numpy(length)
        with pytest.raises(ConfigError, match="committed"):
            policy.act_from(obs, noise, 1, Committed(torch.from_numpy(action), lengths, lengths))
    with pytest.raises(ConfigError, match="both or neither"):
        engine.act(obs, noise, noise)


def test_a_history_and_a_queue_take_only_what_they_can_give_again(contract):
    history, one = ObservationHistory(contract), {key: value[0, 0] for key, value in observe(contract).items()}
    history.append(one)
    for wrong in ({"state": one["state"]}, {**one, "goal": one["goal"][:1]}, {**one, "goal": [1.0]}):
        with pytest.raises(ConfigError, match="goal"):
            history.append(wrong)
    queue = ChunkQueue(2)
    for chunk, skip in ((np.zeros((0, 2)), 0), (np.zeros((4, 2)), -1)):
        with pytest.raises(ConfigError, match="one chunk"):
            queue.push(chunk, skip)
    with pytest.raises(ConfigError, match="at least 1"):
        ChunkQueue(0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_says_constants_exactly_and_reaches_both_ends_of_the_data(sampler, contract):
    """Whatever the network answers: here, far more than the data hold."""
    policy = make(contract, sampler=sampler, constant=True)
    for value in policy.actor.net.parameters():
        value.mul_(30)
    scaling = policy.normalizer.action_scaling
    obs = {key: 5 * value for key, value in observe(contract, 64).items()}
    said = torch.from_numpy(policy.act(obs, torch_generator(0), SAMPLERS[sampler])).flatten(0, 1)
    assert (said[:, 0] == scaling.offset[0]).all()
    ends = scaling.offset[1] + torch.tensor([-1.0, 1.0]) / scaling.scale[1]
    torch.testing.assert_close(torch.stack([said[:, 1].min(), said[:, 1].max()]), ends)
