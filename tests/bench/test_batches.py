from flowpolicy.bench.batches import bench_data


def test_every_timed_batch_reaches_the_update():
    batches = []
    figures = bench_data(batches.append, rows=600, obs=3, action=2, history=1, chunk=4, batch_size=8, repeats=20)
    assert len(batches) == 22
    assert batches[0]["obs", "state"].shape == (8, 1, 3) and batches[0]["action"].shape == (8, 4, 2)
    assert 0 < figures["sample_ms_p25"] <= figures["sample_ms"] <= figures["sample_ms_p75"]
    assert 0 < figures["share"] < 1
