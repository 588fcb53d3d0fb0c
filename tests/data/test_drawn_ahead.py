"""Batches drawn ahead are those that are drawn one by one, also when a run is resumed between them."""

import json
import threading
from concurrent.futures import wait

import numpy as np
import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.streams import Crop
from flowpolicy.data.drawn_ahead import DrawnAhead
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler

from .test_transitions import dataset
from .test_windows import same


class Numbers:
    """Pictures whose pixels are the number of their row, and of the corner that was cut out."""

    shape = (53, 6, 6, 3)

    def __init__(self):
        self.damaged, self.threads = False, set()

    def take(self, rows, crop=None, corners=None):
        self.threads.add(threading.current_thread())
        if self.damaged:
            raise DataError("damaged")
        found = np.empty((len(rows), crop.height, crop.width, 3), np.uint8)
        found[:] = (rows + 60 * corners[:, 0])[:, None, None, None]
        return found


def seeing(kind, store=None):
    data = dataset([20, 33], {7})
    data.frames["front_image"] = store or Numbers()
    return kind(data, 2, 3, 16, crops={"front_image": Crop(4, 4)})


SAMPLERS = {
    "windows": lambda: WindowSampler(dataset([20, 33], {7}), 2, 3, 500, previous=True),
    "transitions": lambda: TransitionSampler(dataset([20, 33], {7}), 1, 1, 500, horizon=4),
    "windows with pictures": lambda: seeing(WindowSampler),
    "transitions with pictures": lambda: seeing(TransitionSampler),
    "batches of more rows than a block": lambda: WindowSampler(dataset([20, 33], {7}), 1, 1, 5000),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_drawn_ahead_is_drawn_one_by_one(kind):
    sampler, (one, other) = SAMPLERS[kind](), (torch_generator(0) for _ in range(2))
    ahead = DrawnAhead(sampler)
    for _ in range(10):
        assert same(ahead.draw(one), sampler.draw(other))


@pytest.mark.parametrize(("kind", "block"), [("transitions", 4), ("windows with pictures", 1)])
@pytest.mark.parametrize("taken", range(10))
def test_a_run_that_is_resumed_goes_on_in_the_middle_of_a_block(taken, kind, block):
    """A run may also end before it has drawn again, and be resumed once more. With pictures a batch is always ahead."""
    sampler, generator, other = SAMPLERS[kind](), torch_generator(0), torch_generator(0)
    wanted = [sampler.draw(other) for _ in range(16)]
    ahead = DrawnAhead(sampler)
    for _ in range(taken):
        ahead.draw(generator)
    state, place = json.loads(json.dumps(ahead.state())), generator.get_state()
    assert bool(state) == bool(taken if block == 1 else taken % block)
    for _ in range(2):
        resumed, again = DrawnAhead(SAMPLERS[kind]()), torch_generator(5).set_state(place)
        resumed.restore(state)
        assert resumed.state() == state
        state = json.loads(json.dumps(resumed.state()))
    for batch in wanted[taken:]:
        assert same(resumed.draw(again), batch)


def test_pictures_are_read_in_another_thread_and_their_damage_is_told_when_the_batch_is_due():
    store = Numbers()
    ahead, generator = DrawnAhead(seeing(WindowSampler, store)), torch_generator(0)
    ahead.draw(generator)
    ahead.draw(generator)
    assert store.threads and threading.current_thread() not in store.threads
    wait([ahead._coming])
    store.damaged = True
    ahead.draw(generator)  # was read before
    for _ in range(2):
        with pytest.raises(DataError, match="damaged"):
            ahead.draw(generator)


def test_a_state_of_another_kind_of_device_is_left_alone():
    """Generators of a GPU have a short state; the trainer has warned that its stream begins anew."""
    sampler, generator, other = SAMPLERS["windows with pictures"](), torch_generator(3), torch_generator(3)
    ahead = DrawnAhead(sampler)
    ahead.restore({"before": "AAAAAAAAAAAAAAAAAAAAAA==", "batches": 1, "left": 1})
    assert same(ahead.draw(generator), sampler.draw(other))


@pytest.mark.parametrize("kind", ["windows", "windows with pictures"])
def test_checkpoints_from_before_go_on_where_they_were(kind):
    sampler, generator, other = SAMPLERS[kind](), torch_generator(0), torch_generator(0)
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
