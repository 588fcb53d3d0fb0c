"""What a row costs: the files are of the sizes asked for, and every load and kind of batch is told of."""

from flowpolicy.bench.rows import bench_rows, rows_table


def test_every_size_is_loaded_and_drawn_from_however_it_is_held():
    found = bench_rows([4000, 2000], rounds=1, load=True)
    held = ["random", "random", "memory", "memory", "mapped", "mapped"]
    assert [(each["rows"], each["held"]) for each in found["entries"]] == list(zip([2000, 4000] * 3, held, strict=True))
    for each in found["entries"][2:]:
        assert each["cold"]["memory_mapped"] == each["warm"]["memory_mapped"] == (each["held"] == "mapped")
        assert {"sample_us", "ratio"} == each["windows"].keys() == each["transitions"].keys()
    assert rows_table(found).row_count == 6
