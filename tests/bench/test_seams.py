"""The seam measure: agreeing chunks have no seam, disagreeing ones jump only in the mode that does nothing."""

from flowpolicy.bench.seams import MODES, bench_seams, seams_table


def test_chunks_that_agree_have_no_seam():
    result = bench_seams(disagreement=0.0, seconds=3.0)
    for mode in MODES:
        assert result["modes"][mode]["reference"] < 1.05 * result["smooth"]


def test_crossfade_spreads_what_latest_jumps():
    result = bench_seams(seconds=4.0)
    modes = result["modes"]
    # Seven joints, three sigma: the jump of 'latest' is the disagreement itself.
    assert modes["latest"]["reference"] > 20.0
    # A half cosine over 0.1 s is steepest by pi/2 / 0.1 s.
    assert modes["crossfade"]["reference"] < 1.6 * modes["latest"]["reference"] * 1.571 * 0.004 / 0.1
    for mode in MODES:
        assert modes[mode]["acceleration"] <= 4.0 + 1e-6
        assert modes[mode]["jerk"] <= 80.0 + 1e-2
    assert seams_table(result).row_count == 4
