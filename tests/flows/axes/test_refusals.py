"""Every row of the table of refusals, with its suggestion."""

import dataclasses

import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.couplings import ConditionalTransport, Nearest, Table
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.refusals import IncompatibleSpecError, Setting, conflicts, validate
from flowpolicy.flows.axes.registry import VALUES, make


def spec(**names):
    return FlowSpec(**{axis: make(axis, name) if isinstance(name, str) else name for axis, name in names.items()})


SMALL = Setting(size=16)
FITTED = make("solver", "olss", nodes=(0.0, 1.0), coefficients=((1.0, 1.0),), weights="a" * 64)

REFUSED = [
    (spec(coupling=ConditionalTransport(weight=0.0)), SMALL, "weight 10"),
    (spec(coupling=Nearest(8, until=1.0)), Setting(size=100), "until 0.3"),
    (spec(coupling=Nearest(4, until=1.0)), SMALL, "until 0.3"),
    (spec(loss="pseudo-huber"), SMALL, "reflow"),
    (spec(loss="adaptive"), SMALL, "reflow"),
    (spec(loss="adaptive", consistency="meanflow"), SMALL, "reflow"),
    (spec(solver="map"), SMALL, "--flow.consistency lsd"),
    (spec(interpolant="latent", consistency="meanflow"), SMALL, "lsd"),
    (spec(solver="sde", source="student-t"), SMALL, "--flow.source normal"),
    (spec(solver="sde", source="mixed"), SMALL, "--flow.source normal"),
    (spec(target=make("target", "data", floor=0.0)), SMALL, "floor 0.05"),
    (spec(target=make("target", "noise", floor=0.0)), SMALL, "floor 0.05"),
    (spec(target="noise"), Setting(nfe=1), "--agent.nfe 4"),
    (spec(solver=make("solver", "plan", letters="ER")), SMALL, "--method refiner"),
    (spec(solver="olss"), SMALL, "flowpolicy fit"),
    (spec(schedule="boss"), SMALL, "flowpolicy fit"),
    (spec(guidance="cfg", consistency="meanflow", solver="map"), SMALL, "euler"),
    (spec(time=make("time", "shifted", reference=4096.0)), SMALL, "reference 56"),
    (spec(solver=make("solver", "heun", last="corrector")), Setting(nfe=2), "safe"),
    (spec(solver=make("solver", "pseudo-corrector", last="corrector")), Setting(nfe=3), "safe"),
    (spec(source=make("source", "mixed", acting="one")), SMALL, "zero"),
    (spec(consistency=make("consistency", "lsd", clamp=0.0)), SMALL, "clamp 3"),
]


@pytest.mark.parametrize(("wrong", "setting", "instead"), REFUSED)
def test_refused(wrong, setting, instead):
    with pytest.raises(IncompatibleSpecError) as refusal:
        validate(wrong, setting)
    assert refusal.value.fix.startswith("use ") and instead in refusal.value.fix
    assert ": " in refusal.value.what


ALLOWED = [
    (spec(), SMALL),
    (spec(coupling="knn"), SMALL),
    (spec(coupling=Nearest(4, until=1.0)), Setting(size=64)),
    (spec(coupling=Nearest(1, until=1.0)), SMALL),
    (spec(loss="pseudo-huber", coupling="table", time="u-shape"), Setting(size=16, teacher=True)),
    (spec(loss=make("loss", "adaptive", power=0.0)), SMALL),
    (spec(consistency="lsd", solver="map"), Setting(nfe=1)),
    (spec(interpolant="latent", consistency="lsd"), SMALL),
    (spec(solver="sde"), Setting(nfe=8)),
    (spec(target="noise"), Setting(nfe=4)),
    (spec(solver=FITTED), Setting(nfe=1)),
    (spec(guidance="cfg", consistency="meanflow"), Setting(nfe=8)),
    (spec(coupling="table"), Setting(teacher=True)),
    (spec(time=make("time", "shifted", reference=56.0)), SMALL),
    (spec(solver="heun"), Setting(nfe=2)),
    (spec(source=make("source", "mixed", acting="one", shown=True)), SMALL),
]


@pytest.mark.parametrize(("right", "setting"), ALLOWED)
def test_allowed(right, setting):
    validate(right, setting)


def test_a_robust_loss_on_long_chunks_warns():
    with pytest.warns(UserWarning, match="random"):
        validate(spec(loss="pseudo-huber"), Setting(size=256))


def test_several_conflicts_are_all_named():
    with pytest.raises(IncompatibleSpecError, match="and 1 more") as refusal:
        validate(spec(loss="pseudo-huber", solver="sde", source="student-t"), SMALL)
    assert all(name in refusal.value.what for name in ("pseudo-huber", "sde", "student-t"))


def test_evaluations_that_cannot_be_spent_are_refused():
    for wrong, nfe in ((spec(solver="midpoint"), 3), (spec(guidance="cfg"), 5), (spec(solver="plan"), 4)):
        with pytest.raises(ConfigError, match=f"nfe={nfe}"):
            validate(wrong, Setting(nfe=nfe))
    with pytest.raises(IncompatibleSpecError, match="0, 1/4"):
        validate(spec(time="grid"), Setting(nfe=3))
    validate(spec(time="grid"), Setting(nfe=2))


def test_a_table_needs_a_teacher():
    with pytest.raises(IncompatibleSpecError, match="teacher"):
        validate(spec(coupling=Table()), SMALL)


def test_most_single_values_are_fine_alone():
    alone = {
        f"{axis} {name}"
        for axis, names in VALUES.items()
        for name in names
        if conflicts(dataclasses.replace(FlowSpec(), **{axis: make(axis, name)}), SMALL)
    }
    assert alone == {
        "guidance compose",
        "coupling table",
        "loss adaptive",
        "loss pseudo-huber",
        "loss balanced",
        "solver map",
        "solver self",
        "target segment",
        "solver olss",
        "schedule boss",
    }


@pytest.mark.parametrize(
    "values",
    [
        {"interpolant": "bridge", "target": "data"},
        {"interpolant": "bridge", "solver": "ddim"},
        {"interpolant": "bridge", "solver": "sde"},
        {"interpolant": "bridge", "source": "student-t"},
        {"interpolant": "bridge", "coupling": "c2ot"},
        {"interpolant": "bridge", "guidance": "gradient"},
        {"interpolant": "bridge", "consistency": "meanflow"},
        {"interpolant": "bridge", "coupling": "table"},
        {"source": "warm-start", "coupling": "table"},
        {"source": "warm-start", "solver": "sde"},
        {"source": "warm-start", "solver": "ddim"},
        {"source": "warm-start", "interpolant": "latent"},
        {"source": "warm-start", "guidance": "gradient"},
        {"source": "warm-start", "target": "noise"},
    ],
)
def test_what_needs_plain_noise_is_refused(values):
    spec = FlowSpec(**{axis: make(axis, name) for axis, name in values.items()})
    with pytest.raises(IncompatibleSpecError, match=r"bridge|warm-start"):
        validate(spec, Setting(teacher=True))
