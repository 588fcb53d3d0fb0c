"""Every row of the table of refusals, with its suggestion [flow-methods 2.2]."""

import dataclasses

import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.couplings import ConditionalTransport, Nearest, Table
from flowpolicy.flows.axes.refusals import IncompatibleSpecError, Setting, conflicts, validate
from flowpolicy.flows.axes.registry import VALUES, make
from flowpolicy.flows.axes.spec import FlowSpec


def spec(**names):
    return FlowSpec(**{axis: make(axis, name) if isinstance(name, str) else name for axis, name in names.items()})


SMALL = Setting(size=16)
FITTED = make("solver", "olss", nodes=(0.0, 1.0), coefficients=((1.0, 1.0),), weights="a" * 64)

REFUSED = [
    ("R1", spec(coupling="ot"), SMALL, "c2ot"),
    ("R1", spec(coupling=ConditionalTransport(weight=0.0)), SMALL, "weight 10"),
    ("R2", spec(coupling=Nearest(8, until=1.0)), Setting(size=100), "until 0.3"),
    ("R2", spec(coupling=Nearest(4, until=1.0)), SMALL, "until 0.3"),
    ("R3", spec(loss="pseudo-huber"), SMALL, "reflow"),
    ("R3", spec(loss="adaptive"), SMALL, "reflow"),
    ("R3", spec(loss="adaptive", consistency="meanflow"), SMALL, "reflow"),
    ("R5", spec(consistency="lsd"), Setting(network="velocity"), "MapNet"),
    ("R5", spec(solver="map"), SMALL, "--flow.consistency lsd"),
    ("R6", spec(interpolant="latent", consistency="meanflow"), SMALL, "lsd"),
    ("R7", spec(consistency="meanflow"), Setting(dropout=0.1), "central-difference"),
    ("R7", spec(consistency="lsd"), Setting(smooth=False), "central-difference"),
    ("R7", spec(consistency="esd"), Setting(batch_norm=True), "central-difference"),
    ("R7", spec(consistency="improved-meanflow"), Setting(fused_attention=True), "central-difference"),
    ("R9", spec(solver="sde", source="student-t"), SMALL, "--flow.source normal"),
    ("R9", spec(solver="sde", source="mixed"), SMALL, "--flow.source normal"),
    ("R9", spec(source="student-t"), Setting(posts=("qam",)), "--flow.source normal"),
    ("R9", spec(), Setting(posts=("reinflow",), endpoint_only=True), "diagonal"),
    ("R10", spec(), Setting(posts=("fisher",), endpoint_only=True), "diagonal"),
    ("R11", spec(), Setting(posts=("gdro",), endpoint_only=True), "velocity network"),
    ("R12", spec(target=make("target", "data", floor=0.0)), SMALL, "floor 0.05"),
    ("R12", spec(target=make("target", "noise", floor=0.0)), SMALL, "floor 0.05"),
    ("R12", spec(target="noise"), Setting(nfe=1), "--agent.nfe 4"),
    ("R13", spec(solver=make("solver", "plan", letters="ER")), SMALL, "--method refiner"),
    ("R14", spec(solver="olss"), SMALL, "flowpolicy fit"),
    ("R14", spec(schedule="boss"), SMALL, "flowpolicy fit"),
    ("R14", spec(solver=FITTED), Setting(weights="b" * 64), "flowpolicy fit"),
    ("R15", spec(), Setting(serving="stream-batch", nfe=1), "euler"),
    ("R15", spec(solver=FITTED), Setting(serving="deadline"), "ab2"),
    ("R16", spec(guidance="cfg", consistency="meanflow", solver="map"), SMALL, "euler"),
    ("R17", spec(coupling="table"), Setting(teacher=True, previous_chunk=True), "store the chunk before"),
    ("R18", spec(), Setting(chunk=8, execute=4, delay=5), "delay"),
    ("R18", spec(), Setting(chunk=8, delay=8), "longer chunks"),
    ("R19", spec(), Setting(posts=("gdro",), group=1), "8"),
    ("R20", spec(), Setting(posts=("fisher", "fql")), "one stage after the other"),
    ("R21", spec(coupling="table"), Setting(teacher=True, clipped_pairs=True), "reflow"),
    ("R21", spec(coupling="table"), Setting(teacher=True, foreign_normalizer=True), "reflow"),
    ("R22", spec(time=make("time", "shifted", reference=4096.0)), SMALL, "reference 56"),
    ("R23", spec(solver=make("solver", "heun", last="corrector")), Setting(nfe=2), "safe"),
    ("R23", spec(solver=make("solver", "pseudo-corrector", last="corrector")), Setting(nfe=3), "safe"),
    ("R24", spec(source=make("source", "mixed", acting="one")), SMALL, "zero"),
    ("R25", spec(consistency=make("consistency", "lsd", clamp=0.0)), SMALL, "clamp 3"),
]


@pytest.mark.parametrize(
    ("row", "wrong", "setting", "instead"), REFUSED, ids=[f"{r[0]}-{i}" for i, r in enumerate(REFUSED)]
)
def test_refused(row, wrong, setting, instead):
    with pytest.raises(IncompatibleSpecError) as refusal:
        validate(wrong, setting)
    assert refusal.value.fix.startswith("use ") and instead in refusal.value.fix
    assert ": " in refusal.value.what


ALLOWED = [
    (spec(), SMALL),
    (spec(coupling="ot"), Setting(size=16, conditional=False)),
    (spec(coupling="knn"), SMALL),
    (spec(coupling=Nearest(4, until=1.0)), Setting(size=64)),
    (spec(coupling=Nearest(1, until=1.0)), SMALL),
    (spec(loss="pseudo-huber", coupling="table", time="u-shape"), Setting(size=16, teacher=True)),
    (spec(loss=make("loss", "adaptive", power=0.0)), SMALL),
    (spec(consistency="lsd", solver="map"), Setting(network="map", nfe=1)),
    (spec(interpolant="latent", consistency="lsd"), SMALL),
    (spec(consistency="central-difference"), Setting(dropout=0.1, smooth=False)),
    (spec(solver="sde"), Setting(nfe=8)),
    (spec(), Setting(posts=("fisher",))),
    (spec(target="noise"), Setting(nfe=4)),
    (spec(solver=FITTED), Setting(weights="a" * 64, nfe=1)),
    (spec(guidance="cfg", consistency="meanflow"), Setting(nfe=8)),
    (spec(), Setting(posts=("gdro",), group=8)),
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
        validate(spec(coupling="ot", loss="pseudo-huber"), SMALL)
    assert "ot" in refusal.value.what and "pseudo-huber" in refusal.value.what


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
        "coupling ot",
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
        {"interpolant": "bridge", "coupling": "table"},  # R17
        {"source": "warm-start", "coupling": "table"},  # R17
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
