import numpy as np
import pytest
from matplotlib.image import imread

from flowpolicy.core.errors import EvaluationError
from flowpolicy.evaluate.curves import draw_curves, read_curves, smooth

HEADER = "step,loss,lr,grad_norm,data_ms,update_ms,log_ms\n"


def rows(n):
    return "".join(f"{50 * i},{2.0**-i:.6g},0.001,{1 + i % 3},0.2,9.0,0.05\n" for i in range(1, n + 1))


def test_a_cut_off_last_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.csv"
    for tail in ("2", "200,0.0", "200,0.5,0.001,1,0.2,9.0,0.0"):
        path.write_text(HEADER + rows(3) + tail)
        curves = read_curves(path)
        assert curves["step"].tolist() == [50.0, 100.0, 150.0]
        assert curves["loss"].tolist() == [0.5, 0.25, 0.125]


def test_empty_cells_are_missing_and_words_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,when\n1,0.5,now\n2,,then\n")
    curves = read_curves(path)
    assert set(curves) == {"step", "loss"}
    assert np.array_equal(curves["loss"], [0.5, np.nan], equal_nan=True)


@pytest.mark.parametrize("text", ["", HEADER, HEADER + "50,0.1", "loss\n0.5\n"])
def test_nothing_to_draw_is_an_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"metrics\.csv holds no complete row"):
        draw_curves(path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_missing_ragged_and_metricless_files_are_errors(tmp_path):
    path = tmp_path / "metrics.csv"
    with pytest.raises(EvaluationError, match="missing"):
        draw_curves(path, tmp_path / "curves.png")
    path.write_text("step,loss\n1,0.5\n2\n3,0.1\n")
    with pytest.raises(EvaluationError, match="line 3: 1 cells"):
        draw_curves(path, tmp_path / "curves.png")
    path.write_text("step\n1\n")
    with pytest.raises(EvaluationError, match="no metric"):
        draw_curves(path, tmp_path / "curves.png")


def test_smoothing_keeps_a_constant_and_shrinks_noise():
    assert smooth(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    assert smooth(np.array([1.0, 5.0])).tolist() == [1.0, 5.0]
    noise = np.random.default_rng(0).normal(size=4000)
    # Exponential average with decay 0.99: variance (1 - 0.99) / (1 + 0.99) of the noise's.
    assert smooth(noise)[1000:].var() == pytest.approx(0.01 / 1.99, rel=0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 120])
def test_the_picture_is_drawn(tmp_path, n):
    (tmp_path / "metrics.csv").write_text(HEADER + rows(n))
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").std() > 0.05
