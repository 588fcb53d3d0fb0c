"""The toy's laws, the measure, recipes from words, and a table from small runs."""

import dataclasses
import json

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.lab.chunk_toy import ChunkToy
from flowpolicy.lab.lab_plan import LabPlan
from flowpolicy.lab.lab_report import per_seed, summarise, write_report
from flowpolicy.lab.measure import energy_distance
from flowpolicy.lab.recipes import TOLERANCE, Recipe, check, parameters, parse_recipe, run_once, sized

TINY = LabPlan(
    toy=ChunkToy(size=500), updates=12, batch=32, width=16, depth=2, observations=6, samples=16, nfes=(1, 2, 4)
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("toy", [ChunkToy(), ChunkToy(steps=3, action=3, obs=4, modes=3, share=0.4, first=0.5)])
def test_the_toy_has_the_law_that_it_says(toy):
    obs = toy.observe(4000, random())
    weights = toy.weights(obs)
    assert torch.allclose(weights.sum(1), torch.ones(4000))
    assert float((weights[:, 0] < 1).float().mean()) == pytest.approx(toy.share, abs=0.03)
    one = obs[weights[:, 0] < 1][:1].expand(20_000, -1)
    chunks, centres = toy.chunks(one, random()).flatten(1), toy.centres(one[:1])[0]
    assert chunks.shape == (20_000, toy.dimensions)
    even = torch.arange(toy.dimensions) % 2 == 0
    # The narrow dimensions tell the modes apart.
    nearest = torch.cdist(chunks[:, even], centres[:, even]).argmin(1)
    assert float((nearest == 0).float().mean()) == pytest.approx(toy.first, abs=0.02)
    spread = (chunks - centres[nearest]).std(0)
    assert torch.allclose(spread[even], torch.full_like(spread[even], toy.narrow), rtol=0.1)
    assert (spread[~even] < 1.1 * toy.wide).all() and (spread[~even] > 0.5 * toy.wide).all()


def test_energy_distance():
    x, y = torch.randn(40, 100, 3, generator=random(1)), torch.randn(40, 100, 3, generator=random(2))
    assert abs(float(energy_distance(x, y).mean())) < 0.01
    assert float(energy_distance(x, y + 2).mean()) > 1
    points = torch.zeros(1, 5, 2), torch.ones(1, 5, 2)
    assert float(energy_distance(*points)) == pytest.approx(2 * 2**0.5)


def test_recipes_are_words():
    recipe = parse_recipe("Mine: coupling=c2ot coupling.weight=3 solver=ab2 lr=0.002 fit=olss")
    assert (recipe.name, recipe.lr, recipe.fit) == ("Mine", 0.002, True)
    assert recipe.flow.coupling.weight == 3.0 and recipe.flow.solver.name == "ab2"
    assert parse_recipe("solver.last=corrector solver=heun").flow.solver.last == "corrector"
    assert parse_recipe("").name == "flow matching" and parse_recipe("") == Recipe("flow matching")
    dm1 = parse_recipe("DM1: base=dm1")
    assert dm1.base == "dm1" and dm1.flow.solver.name == "map" and dm1.flow.time.name == "ends"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("copling=c2ot", "did you mean 'coupling'"),
        ("coupling=c2to", "did you mean 'c2ot'"),
        ("coupling=c2ot coupling.wieght=3", "did you mean 'weight'"),
        ("c2ot", "KEY=VALUE"),
        ("base=fql", "base=mip"),
        ("base=mip solver=ab2", "no axes"),
        (":", "has no name"),
        ("A: lr=abc", "lr=abc"),
        ("A: lr=nan", "lr=nan"),
        ("A: coupling=c2ot coupling.weight=abc", "coupling.weight is 'abc'"),
    ],
)
def test_wrong_recipes_are_refused(text, hint):
    with pytest.raises(ConfigError, match=hint):
        parse_recipe(text)


@pytest.mark.parametrize(
    "text", ["", "base=dm1", "base=encoder consistency=meanflow solver=map", "target=segment solver=self", "base=mip"]
)
def test_rows_have_equal_parameters(text):
    """DM1's encoder once gave its row twice the parameters of its rivals."""
    wanted = parameters(Recipe("flow matching"), LabPlan())
    recipe = parse_recipe(text)
    assert parameters(recipe, sized(recipe, LabPlan())) == pytest.approx(wanted, rel=TOLERANCE)


def test_combinations_are_refused_before_any_run():
    with pytest.raises(ConfigError, match="conditional"):
        check([parse_recipe("coupling=c2ot coupling.weight=0")], TINY)


@pytest.mark.parametrize(("base", "nfe"), [("regression", "1"), ("mip", "2")])
def test_controls_are_measured_where_they_act(base, nfe, tmp_path):
    toy = ChunkToy(size=200, steps=3, action=1, obs=3, modes=3)
    record = run_once(
        parse_recipe(f"base={base}"), dataclasses.replace(TINY, toy=toy), 0, tmp_path, "flowpolicy lab 'x y'"
    )
    assert set(record["error"]) == {nfe} and record["command"] == "flowpolicy lab 'x y'"


@pytest.mark.quick("laboratory")
def test_records_table_and_picture(tmp_path):
    recipes = [parse_recipe(text) for text in ("flow matching: fit=olss", "LSD: consistency=lsd solver=map")]
    records = [run_once(recipe, TINY, seed, tmp_path) for recipe in recipes for seed in (0, 1)]
    assert set(records[0]["error"]) == {"1", "2", "4"} and len(records[0]["error"]["1"]) == 6
    assert set(records[0]["fitted"]) == {"2", "4"}
    assert records[0]["seed"] == 0 and records[0]["command"] == "" and "commit" in records[0]
    # The same record, read from its file; other seeds are other runs.
    assert run_once(recipes[0], TINY, 0, tmp_path) == records[0]
    assert records[0]["error"] != records[1]["error"]
    mean = summarise(records)["LSD"][1].mean
    assert mean == pytest.approx(sum(per_seed(records, "LSD", 1)) / 2)
    write_report(records, tmp_path)
    text = (tmp_path / "lab.md").read_text()
    assert "| NFE 4 | width | parameters | CPU seconds |" in text
    assert "same code" not in text
    write_report([*records[1:], records[0] | {"commit": "0" * 40}], tmp_path / "mixed")
    assert "Not all rows were made by the same code" in (tmp_path / "mixed" / "lab.md").read_text()
    assert "| LSD |" in text and "| flow matching, fitted | - |" in text
    assert (tmp_path / "lab.png").stat().st_size > 5000
    assert set(json.loads((tmp_path / "lab.json").read_text())["error"]) == {
        "flow matching",
        "flow matching, fitted",
        "LSD",
    }
