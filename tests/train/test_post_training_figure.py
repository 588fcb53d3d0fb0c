"""The picture of a post-training and what its title says."""

import numpy as np
import pytest

from flowpolicy.core.errors import EvaluationError
from flowpolicy.train.post_training_figure import draw_corrected, verdict


def curves(best, reward, held_out):
    columns = {"best_update": best, "reward_gain": reward, "hacking_gap": reward - held_out}
    return {name: np.array([0.0, value]) for name, value in columns.items()}


def test_the_title_says_what_is_kept_and_whether_the_end_is_confirmed():
    assert verdict(curves(300, 0.5, 0.4)) == "update 300 is kept"
    assert verdict(curves(0, 0.5, -0.1)) == "the base is kept; the held-out judge does not confirm the end"
    assert verdict(curves(100, 0.5, 0.1)) == "update 100 is kept; the held-out judge does not confirm the end"


def test_drawn_with_and_without_success_and_refused_for_other_runs(tmp_path):
    names = ["reward_gain", "held_out_gain", "corrected_gain", "hacking_gap", "unsupported", "kl", "best_update"]
    rows = [",".join(map(str, [step, *[step / 10] * len(names)])) for step in (10, 20)]
    (tmp_path / "metrics.csv").write_text("\n".join([",".join(["step", *names]), *rows, ""]))
    sizes = []
    for success in ([], [(0, 0.5), (20, 0.7)]):
        draw_corrected(tmp_path / "metrics.csv", tmp_path / "a.png", success)
        sizes.append((tmp_path / "a.png").stat().st_size)
    assert sizes[1] > sizes[0] > 5000
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(EvaluationError, match="no column reward_gain"):
        draw_corrected(tmp_path / "metrics.csv", tmp_path / "b.png")
