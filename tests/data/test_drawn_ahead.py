"""Batches drawn ahead are those that are drawn one by one, also when a run is resumed between them."""

import json

import pytest

from flowpolicy.core.seed import torch_generator
from flowpolicy.data.drawn_ahead import DrawnAhead
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler

from .test_transitions import dataset
from .test_windows import same

SAMPLERS = {
    "windows": lambda: WindowSampler(dataset([20, 33], {7}), 2, 3, 500, previous=True),
    "transitions": lambda: TransitionSampler(dataset([20, 33], {7}), 1, 1, 500, horizon=4),
    "batches of more rows than a block": lambda: WindowSampler(dataset([20, 33], {7}), 1, 1, 5000),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_drawn_ahead_is_drawn_one_by_one(kind):
    sampler, (one, other) = SAMPLERS[kind](), (torch_generator(0) for _ in range(2))
    ahead = DrawnAhead(sampler)
    for _ in range(10):
        assert same(ahead.draw(one), sampler.draw(other))


@pytest.mark.parametrize("taken", range(10))
def test_a_run_that_is_resumed_goes_on_in_the_middle_of_a_block(taken):
    """A block has four batches here; a run may also end before it has drawn again, and be resumed once more."""
    sampler, generator, other = SAMPLERS["transitions"](), torch_generator(0), torch_generator(0)
    wanted = [sampler.draw(other) for _ in range(16)]
    ahead = DrawnAhead(sampler)
    for _ in range(taken):
        ahead.draw(generator)
    state, place = json.loads(json.dumps(ahead.state())), generator.get_state()
    assert bool(state) == bool(taken % 4)
    for _ in range(2):
        resumed, again = DrawnAhead(SAMPLERS["transitions"]()), torch_generator(5).set_state(place)
        resumed.restore(state)
        assert resumed.state() == state
        state = json.loads(json.dumps(resumed.state()))
    for batch in wanted[taken:]:
        assert same(resumed.draw(again), batch)


def test_checkpoints_from_before_go_on_where_they_were():
    sampler, generator, other = SAMPLERS["windows"](), torch_generator(0), torch_generator(0)
    for each in (generator, other):
        sampler.draw(each)
    ahead = DrawnAhead(sampler)
    ahead.restore({})
    assert same(ahead.draw(generator), sampler.draw(other))


def test_two_runs_beside_each_other_draw_their_own():
    sampler, (one, other) = SAMPLERS["windows"](), (torch_generator(seed) for seed in (0, 1))
    first = DrawnAhead(sampler)
    second = first.beside()
    for _ in range(5):
        drawn = first.draw(one), second.draw(other)
        assert not same(*drawn)
    alone = DrawnAhead(sampler)
    generator = torch_generator(1)
    for _ in range(5):
        batch = alone.draw(generator)
    assert same(batch, drawn[1])
