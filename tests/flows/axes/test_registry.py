"""One class puts a method on an axis: the command line, the refusals and the files know it at once."""

import dataclasses

import pytest

from flowpolicy.core.config import decode, encode
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.references import citations
from flowpolicy.flows.axes.couplings import Coupling, Pairing
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.refusals import IncompatibleSpecError, validate
from flowpolicy.flows.axes.registry import AXES, TAGS, VALUES, Conflict, Reference, make, register


@pytest.fixture
def mirrored():
    """A coupling that nobody has published: noise turned towards the chunk."""

    @register("coupling", "mirrored", Reference("An unwritten paper", "0000.00000"))
    @dataclasses.dataclass(frozen=True)
    class Mirrored(Coupling):
        sign: float = -1.0

        def pair(self, draw, data, cond, progress):
            return Pairing(self.sign * draw())

        def conflicts(self, spec, setting):
            if spec.consistency.two_time:
                yield Conflict(self.flag, "it is for single times", "--flow.consistency none")

    yield Mirrored
    del VALUES["coupling"]["mirrored"], TAGS["coupling/mirrored"]


def test_a_new_class_is_a_value(mirrored):
    spec = FlowSpec(coupling=make("coupling", "mirrored", sign=1.0))
    validate(spec)
    with pytest.raises(IncompatibleSpecError, match="single times"):
        validate(dataclasses.replace(spec, consistency=make("consistency", "lsd")))
    from flowpolicy.configs.presets import KINDS

    assert decode(encode(spec, KINDS), KINDS) == spec
    assert "coupling mirrored: An unwritten paper https://arxiv.org/abs/0000.00000" in citations("flow", spec)


def test_names_are_taken_once_and_axes_exist(mirrored):
    with pytest.raises(ConfigError, match="twice"):
        register("coupling", "mirrored")(mirrored)
    with pytest.raises(ConfigError, match="did you mean 'coupling'"):
        register("couplings", "new")(mirrored)


def test_misspelt_names_and_options_get_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'c2ot'"):
        make("coupling", "c2to")
    with pytest.raises(ConfigError, match="did you mean 'weight'"):
        make("coupling", "c2ot", wieght=1.0)


def test_every_value_explains_itself_and_has_a_tag():
    for axis in AXES:
        for name, cls in VALUES[axis].items():
            assert cls.__doc__ and TAGS[f"{axis}/{name}"] is cls
            assert cls.references or name in ("none", "uniform", "euler"), f"{axis} {name} names no source"
            for field in dataclasses.fields(cls):
                assert field.default is not dataclasses.MISSING


def test_a_spec_has_the_axes_as_its_fields():
    assert tuple(field.name for field in dataclasses.fields(FlowSpec)) == AXES
