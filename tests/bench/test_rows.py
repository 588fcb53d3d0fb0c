"""What a row costs: the files are of the sizes asked for, and every load and kind of batch is told of."""

from flowpolicy.bench.rows import bench_rows, rows_table


def test_every_size_is_loaded_and_drawn_from_in_memory_and_mapped():
    found = bench_rows([4000, 2000], rounds=1)
    assert [(each["rows"], each["memory_limit_mb"] > 0) for each in found["entries"]] == [
        (2000, True),
        (4000, True),
        (2000, False),
        (4000, False),
    ]
    for each in found["entries"]:
        assert each["cold"]["memory_mapped"] == each["warm"]["memory_mapped"] == (each["memory_limit_mb"] == 0)
        assert {"sample_us", "ratio"} == each["windows"].keys() == each["transitions"].keys()
    assert rows_table(found).row_count == 4
