"""Groups of candidate chunks for states of a dataset: what a policy would do there, or what others did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.seed import numpy_generator, torch_generator
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.windows import WindowSampler
from flowpolicy.policy.policy import Policy

_BLOCK = 256

Progress = Callable[[int], None]


@dataclasses.dataclass
class Candidates:
    """n states with k chunks each, not yet scored."""

    obs: dict[str, Float[Tensor, "n o d"]]
    action: Float[Tensor, "n k h a"]
    """In environment units; number 0 is the data's own chunk."""
    valid: Tensor
    """(n, h) bool."""
    row: Int64[Tensor, " n"]
    """Row of the dataset that the state is."""
    noise_scales: tuple[float, ...] = ()
    """(k,) of the noise that each candidate started from; the data's own counts as the policy's last."""
    neighbours: Int64[Tensor, "n k"] | None = None
    """Rows of the dataset that the chunks come from; None where a policy generated them."""


def choose_states(
    dataset: Dataset, chunk: int, count: int, seed: int, share: float, span: tuple[float, float] = (0.0, 1.0)
) -> tuple[Int64[Tensor, " n"], Bool[Tensor, " episodes"]]:
    """Rows from which a whole chunk is left in their episode, without replacement, and which episodes are held out.

    Whole episodes are held out, ``share`` of them: states of one episode resemble each other.

    Args:
        dataset: where the states come from.
        chunk: steps that must be left in the episode.
        count: states, or as many as there are.
        seed: same seed, same states.
        share: of the episodes, held out.
        span: part of every episode that states are taken from, as fractions of its length: [low, high).

    Raises:
        ConfigError: ``share`` outside (0, 1), or ``span`` no part of [0, 1].
        DataError: there are no such rows, or only one episode.

    """
    if not 0 < share < 1:
        raise ConfigError(f"--held-out-share is {share}", expected="between 0 and 1")
    low, high = span
    if not 0 <= low < high <= 1:
        raise ConfigError(f"--span is {low:g} {high:g}", expected="0 <= LOW < HIGH <= 1, e.g. 0 0.3: the first 30 %")
    length, left = dataset.lengths.repeat_interleave(dataset.lengths), _steps_left(dataset)
    step = length - left
    rows = ((left >= chunk) & (step >= low * length) & (step < high * length)).nonzero().flatten()
    episodes = len(dataset.lengths)
    if not len(rows) or episodes < 2:
        raise DataError(
            f"{dataset.path}: {episodes} episode(s) and {len(rows)} rows of the span {low:g} to {high:g} with a whole "
            f"chunk of {chunk} after them",
            expected="at least 2 episodes: some are held out",
        )
    stream = numpy_generator(seed, "groups", "states")
    chosen = torch.from_numpy(stream.permutation(len(rows))[:count])
    rows = rows[chosen].sort().values
    lot = stream.permutation(episodes)[: max(1, min(episodes - 1, round(share * episodes)))]
    apart = torch.zeros(episodes, dtype=torch.bool)
    apart[torch.from_numpy(lot)] = True
    held_out = apart[dataset.steps[keys.EPISODE][rows]]
    if bool(held_out.all()) or not bool(held_out.any()):
        raise DataError(
            f"{len(rows)} states of {episodes} episodes cannot be split, {share:.0%} of the episodes held out",
            fix="ask for more --states",
        )
    return rows, apart


def policy_candidates(
    policy: Policy,
    dataset: Dataset,
    rows: Int64[Tensor, " n"],
    count: int,
    seed: int,
    nfe: int | None = None,
    noise_scale: tuple[float, float] = (1.0, 1.0),
) -> Candidates:
    """The data's chunk and ``count - 1`` samples of a policy for every row.

    Args:
        policy: what is to be improved.
        dataset: where the states come from.
        rows: the states.
        count: k.
        seed: of the noise.
        nfe: network evaluations per candidate; the contract's number unless given.
        noise_scale: of the initial noise, from the first sample to the last, in even steps.

    """
    contract = policy.contract
    batch = _windows(policy, dataset).at(rows)
    obs = {name: value for name, value in batch[keys.OBS].items() if name in contract.spec.observation}
    shape = (len(rows), count - 1, contract.chunk, contract.spec.action.size)
    scales = torch.linspace(*noise_scale, count - 1)
    law, each = policy.shapes.law, (len(rows) * (count - 1), *shape[2:])
    noise = scales.view(-1, 1, 1) * law.sample(each, torch_generator(seed, "groups", "candidates")).view(shape)
    nfe = contract.nfe if nfe is None else nfe
    blocks = []
    for first in range(0, len(rows), _BLOCK):
        part = slice(first, first + _BLOCK)
        repeated = {name: value[part].repeat_interleave(count - 1, 0) for name, value in obs.items()}
        chunks = policy.act_from(repeated, noise[part].flatten(0, 1), nfe)
        blocks.append(chunks.view(-1, *shape[1:]).to(noise.device, copy=True))
    action = torch.cat([batch[keys.ACTION].unsqueeze(1), torch.cat(blocks)], dim=1)
    return Candidates(obs, action, batch[keys.VALID], rows, (noise_scale[1], *scales.tolist()))


def neighbour_candidates(
    policy: Policy,
    dataset: Dataset,
    rows: Int64[Tensor, " n"],
    count: int,
    apart: Bool[Tensor, " episodes"] | None = None,
) -> Candidates:
    """Chunks of the data at the nearest states of ``count`` different episodes, the row's own first.

    Near in what the policy's encoder makes of the (normalised) observations. Episodes that are held ``apart`` give
    candidates to each other's states alone, and take none from the rest: what they judge has not seen them.
    """
    if apart is None:
        apart = torch.zeros(len(dataset.lengths), dtype=torch.bool)
    sampler = _windows(policy, dataset)
    known = (_steps_left(dataset) >= policy.contract.chunk).nonzero().flatten()
    counts = torch.bincount(dataset.steps[keys.EPISODE][known], minlength=len(dataset.lengths)).tolist()
    long_enough = torch.tensor(counts) > 0
    sides = [int((long_enough & (apart == side)).sum()) for side in (False, True) if bool((apart == side).any())]
    if count > min(sides):
        raise ConfigError(
            f"--candidates {count} from {' and '.join(map(str, sides))} episodes of a chunk or more",
            expected="at most one from each episode, and those held out for themselves",
            fix="fewer --candidates, or another --held-out-share",
        )
    features, own = _features(policy, sampler, known), _features(policy, sampler, rows)
    found = []
    # In blocks, an episode at a time: temporaries as large as the dataset, one per state, would exhaust the memory.
    for block, anchors in zip(own.split(_BLOCK), rows.split(_BLOCK), strict=True):
        least, nearest = _nearest_in_episodes(block, features.split(counts), known.split(counts))
        index, home = torch.arange(len(anchors)), dataset.steps[keys.EPISODE][anchors]
        least[apart[home].unsqueeze(1) != apart] = torch.inf
        least[index, home], nearest[index, home] = -1.0, anchors
        found.append(nearest.gather(1, least.topk(count, largest=False).indices))
    neighbours = torch.cat(found)
    batch = sampler.at(rows)
    obs = {name: value for name, value in batch[keys.OBS].items() if name in policy.contract.spec.observation}
    action = sampler.at(neighbours.flatten())[keys.ACTION].view(*neighbours.shape, *batch[keys.ACTION].shape[1:])
    return Candidates(obs, action, batch[keys.VALID], rows, neighbours=neighbours)


def returns_to_go(dataset: Dataset, discount: float) -> Float[Tensor, " n"]:
    """Discounted sum of the rewards from every row to the end of its episode."""
    reward = dataset.steps[keys.REWARD][:].double().numpy()
    last = dataset.steps[keys.TERMINAL][:].numpy()
    total, found = 0.0, np.empty(len(reward))
    for row in range(len(reward) - 1, -1, -1):
        total = reward[row] + (0.0 if last[row] else discount * total)
        found[row] = total
    return torch.from_numpy(found).float()


def simulator_scores(success: Tensor, steps: Tensor, limit: Tensor, time_price: float = 0.1) -> Float[Tensor, "n k"]:
    """Share of successful rollouts minus ``time_price`` times the share of the steps left that they took.

    Args:
        success: (n, k, r) bool.
        steps: (n, k, r) steps from the state to the end.
        limit: (n,) steps from the state to the horizon: what a failure is charged.
        time_price: success outweighs any time.

    """
    taken = torch.where(success, steps.float() / limit[:, None, None].float(), 1.0).clamp(max=1.0)
    return (success.float() - time_price * taken).mean(2)


def state_calls(
    dataset: Dataset, candidates: Candidates, seed: int, rollouts: int, completion: float | Literal["own"]
) -> list[tuple[Any, ...]]:
    """Arguments of ``CandidateRunner.label`` for every state; ``completion`` is the noise scale of the completions."""
    scales = candidates.noise_scales if completion == "own" else (completion,) * candidates.action.shape[1]
    episode = dataset.steps[keys.EPISODE][candidates.row]
    step = candidates.row - dataset.starts[episode]
    return [
        (
            dataset.names[int(episode[i])],
            int(step[i]),
            {name: value[i].numpy() for name, value in candidates.obs.items()},
            candidates.action[i].numpy(),
            seed,
            rollouts,
            scales,
        )
        for i in range(len(candidates.row))
    ]


def _steps_left(dataset: Dataset) -> Int64[Tensor, " n"]:
    """Steps from every row to the end of its episode, the row's own included."""
    ends = (dataset.starts + dataset.lengths).repeat_interleave(dataset.lengths)
    return ends - torch.arange(len(ends))


def _nearest_in_episodes(
    own: Float[Tensor, "b f"], features: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Float[Tensor, "b e"], Int64[Tensor, "b e"]]:
    """For every state and episode the distance to its nearest row, and that row; infinity where it has none."""
    least = torch.full((len(own), len(rows)), torch.inf)
    nearest = torch.zeros((len(own), len(rows)), dtype=torch.int64)
    for episode, (there, numbers) in enumerate(zip(features, rows, strict=True)):
        if len(numbers):
            # Not by matrix products: they lose the small distances that are compared here.
            distance = torch.cdist(own, there, compute_mode="donot_use_mm_for_euclid_dist")
            least[:, episode], at = distance.min(1)
            nearest[:, episode] = numbers[at]
    return least, nearest


def _windows(policy: Policy, dataset: Dataset) -> WindowSampler:
    return WindowSampler(dataset, policy.contract.history, policy.contract.chunk, 1)


def _features(policy: Policy, sampler: WindowSampler, rows: Int64[Tensor, " n"]) -> Float[Tensor, "n f"]:
    blocks = []
    for part in rows.split(4096):
        obs = policy.observed({key: sampler.at(part)[keys.OBS][key] for key in policy.contract.spec.observation})
        with torch.no_grad():
            features = policy.actor.encoder(policy.streams(obs)).features
            blocks.append(torch.cat([*features.values()], dim=1).to(rows.device))
    return torch.cat(blocks)
