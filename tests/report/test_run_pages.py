"""The page about runs: what it holds, what it leaves out and says so, and that nothing of a user's is markup."""

import re
import shutil

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, EvaluationError
from flowpolicy.evaluate.report import compare, load_evaluation
from flowpolicy.evaluate.tables import verdict
from flowpolicy.report.filmed import Film, Traces, chosen_films
from flowpolicy.report.gathering import unique_labels
from flowpolicy.report.run_pages import write_report

from .reported_runs import HOSTILE, facts_of, make_run, section

pytest.importorskip("imageio_ffmpeg")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return [make_run(home / "a", nfes=(1, 4)), make_run(home / f"b {HOSTILE.replace('/', '')}", rate=0.3, seed=1)]


@pytest.mark.quick("report")
def test_a_report_says_what_the_records_say(runs, tmp_path):
    written = write_report(runs, tmp_path / "r.html")
    facts, attached = facts_of(written.path)
    rows = section(facts, "results")["blocks"][0]["rows"]
    records = [load_evaluation(path) for run in runs for path in sorted((run / "eval").glob("*.json"))]
    assert len(rows) == len(records) == 3
    assert {(row[0], row[4]) for row in rows} == {("a", 1), ("a", 4), (runs[1].name, 1)}
    found = records[0].success
    shown = next(row for row in rows if row[0] == "a" and row[4] == records[0].nfe)[7]
    assert shown == pytest.approx([100 * found.mean, 100 * found.low, 100 * found.high])
    pairs = section(facts, "differences")["blocks"][0]["rows"]
    assert len(pairs) == 3  # every pair of three records on one plan
    told = {(row[0], row[1]): row[6] for row in pairs}
    a1, b = (next(e for e in records if e.nfe == 1 and e.run == str(run)) for run in runs)
    assert told["a, NFE 1", runs[1].name].startswith(verdict(compare(a1, b)))
    episodes = section(facts, "episodes")["blocks"][0]["episodes"]
    assert len(episodes) == 120 and sum(one["film"] is not None for one in episodes) == 8
    assert sorted(attached) == sorted(one[kind] for one in episodes for kind in ("film", "trace") if one[kind])
    nfes = section(facts, "card")["blocks"]
    assert [row[1] for row in nfes[0]["rows"] if row[0] == "a"] == [1, 4]
    curves = section(facts, "training")["blocks"][0]["charts"]
    assert [one["title"] for one in curves] == ["loss", "learning rate"]
    assert all(len(one["lines"]) == 2 and one["explanation"] for one in curves)
    assert "not here any more" in section(facts, "data")["blocks"][0]["lines"][0]
    assert any("It decides on 8 actions" in line for line in section(facts, "contract")["blocks"][0]["lines"])


def test_nothing_of_a_user_is_markup_and_nothing_is_fetched(runs, tmp_path):
    text = write_report(runs, tmp_path / "r.html").path.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src &#x27;none&#x27;" in policy and "unsafe" not in policy and "http" not in policy
    assert "<img" not in text and 'onerror=\\"' in text  # in JSON alone, where '<' is written otherwise
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    scripts = re.findall(r"<script(?: type=\"[\w/]+\" id=\"[\w-]+\")?>", text)
    assert text.count("</script>") == len(scripts)


def test_videos_have_a_budget_failures_come_first_and_what_is_left_out_is_told(runs, tmp_path):
    everything = write_report(runs, tmp_path / "all.html")
    assert not everything.left_out
    none = write_report(runs, tmp_path / "none.html", videos_mb=0)
    assert "8 of 8 videos are left out" in none.left_out[0] and none.size < everything.size
    facts, attached = facts_of(none.path)
    assert not [name for name in attached if name.startswith("film")]
    assert none.left_out[0] in section(facts, "episodes")["blocks"][1]["lines"]
    films = [(owner, outcome, Film(10, bytes)) for owner in "ab" for outcome in ("success", "failure", "failure")]
    assert chosen_films(films, 20) == {1, 4}  # a failure of either
    assert chosen_films(films, 40) == {0, 1, 3, 4}
    assert chosen_films(films, 60) == set(range(6))


def test_a_trace_is_kept_to_a_part_in_sixty_thousand_and_what_is_missing_stays_missing():
    import base64
    import json

    values = np.random.default_rng(0).normal(size=(50, 3)) * [1, 1e6, 0]
    values[7, 0] = np.nan
    stored = json.loads(Traces({"x": values}, 10.0).to_json())["groups"][0]
    steps = np.frombuffer(base64.b64decode(stored["data"]), "<u2").reshape(3, 50).T.astype(float)
    assert np.array_equal(steps == 65_535, np.isnan(values))
    low, high = np.array(stored["low"]), np.array(stored["high"])
    found = np.where(steps == 65_535, np.nan, low + steps / 65_534 * (high - low))
    np.testing.assert_allclose(found, values, atol=1e-4 * 1e6, rtol=0)
    np.testing.assert_allclose(found[:, 0], values[:, 0], atol=1e-4)
    assert json.loads(Traces({"x": values}, 10.0).to_json(20))["rows"][-1] == 49


def test_what_is_no_run_is_told(runs, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        write_report([tmp_path / "no"], tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds nothing to report"):
        write_report([tmp_path / "empty"], tmp_path / "r.html")
    broken = tmp_path / "broken"
    shutil.copytree(runs[0], broken)
    next((broken / "videos").glob("*.json")).write_text('{"schema": 1, "action": [[0]], "obs": {}}')
    with pytest.raises(EvaluationError, match="is damaged"):
        write_report([broken], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_labels_are_as_short_as_they_can_be(tmp_path):
    assert unique_labels([tmp_path / "x" / "dm1", tmp_path / "y" / "dm1"]) == ["x/dm1", "y/dm1"]
    assert unique_labels([tmp_path / "dm1"]) == ["dm1"]
