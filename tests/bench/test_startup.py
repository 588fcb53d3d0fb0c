import pytest

from flowpolicy.bench.startup import STARTS, TORCH, bench_startup, startup_table
from flowpolicy.core.errors import FlowPolicyError

BUSY = "sum(range(3_000_000))"


def test_processor_time_of_programs_over_that_of_the_first():
    result = bench_startup(rounds=2, starts={TORCH: ("-c", ""), "busy": ("-c", f"{BUSY}; {BUSY}")})
    assert result["cpu_s"]["busy"]["median"] > result["cpu_s"][TORCH]["median"] > 0
    assert result["ratios"].keys() == {"busy"} and result["ratios"]["busy"]["median"] > 1
    assert startup_table(result).row_count == 2


def test_a_program_that_fails_is_told():
    with pytest.raises(FlowPolicyError, match=r"python -c 1/0 failed:(.|\n)*ZeroDivisionError"):
        bench_startup(rounds=1, starts={TORCH: ("-c", "1/0")})


def test_a_command_of_every_kind_is_started():
    assert {"--help", "train debug, two updates", "a Lift worker"} <= STARTS.keys()
