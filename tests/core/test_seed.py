import torch

from flowpolicy.core.seed import derive, first_weights, numpy_generator, torch_generator


def test_streams_are_stable_and_apart():
    # Stored runs depend on these numbers: changing them breaks every resume and every plan.
    assert derive(0, "batches") == 5237782742855521824
    assert derive(7, "a", 3) == 6890369943053847145
    names = [(), ("a",), ("b",), ("a", 1), ("a", 2), ("a/1",)]
    assert len({derive(0, *name) for name in names[:5]}) == 5
    assert derive(0, "a") != derive(1, "a")


def test_generators_leave_the_global_streams_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    torch.randn(4, generator=torch_generator(0, "x"))
    numpy_generator(0, "x").normal(size=4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_first_weights_follow_their_stream_and_leave_the_global_one():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    drawn = []
    for _ in range(2):
        with first_weights(5, "weights"):
            drawn.append(torch.nn.Linear(3, 2).weight)
    assert torch.equal(*drawn)
    assert torch.equal(torch.random.get_rng_state(), before)
