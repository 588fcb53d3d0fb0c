import dataclasses
import importlib
import math
import typing

import pytest

from flowpolicy.cli import main
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Count, Natural, Range, Share, checked, declared_ranges, require_ranges

HUGE, TINY = 10**30, -1


@dataclasses.dataclass(frozen=True)
class Inner:
    share: Share = 0.5
    sizes: tuple[Count, ...] = (1,)
    free: float = 0.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    most: Natural | None = None
    flag: bool = True


def test_a_range_holds_what_it_says():
    assert 1 in Range(1) and 0 not in Range(1) and math.nan not in Range()
    assert math.inf not in Range() and math.inf in Range(infinite=True)
    assert 0 not in Range(0, above=True) and 1 not in Range(0, 1, below=True)
    assert str(Range(0, 1, below=True)) == "at least 0 and below 1"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (Outer(most=-1), "--most is -1"),
        (Outer(Inner(share=1.5)), "--inner.share is 1.5"),
        (Outer(Inner(sizes=(3, 0))), "--inner.sizes is 0"),
        (Outer(Inner(free=math.nan)), "--inner.free is nan"),
    ],
)
def test_what_is_out_of_range_is_named_by_its_flag(config, named):
    require_ranges(Outer(most=3))
    with pytest.raises(ConfigError) as caught:
        require_ranges(config)
    assert caught.value.what == named


COMMANDS = {
    "bench": ("update", "latency", "data", "rollout", "serve", "startup", "seams"),
    "data": ("make", "rollouts"),
    "groups": ("picture",),
    "robot": ("deploy", "record", "recover", "rearm"),
    "suite": ("run_suite",),
    "evaluate": ("evaluate",),
    **{name: (name,) for name in ("card", "demo", "distill", "doctor", "export", "fit", "lab", "serve")},
}


def holds_number(hint):
    return hint in (int, float) or any(holds_number(part) for part in typing.get_args(hint))


def functions():
    """Of every command, with its name."""
    for module, names in COMMANDS.items():
        for name in names:
            yield name, getattr(importlib.import_module(f"flowpolicy.commands.{module}"), name)


def test_every_number_of_a_command_has_a_range():
    missing = []
    for name, function in functions():
        hints, ranges = typing.get_type_hints(function), declared_ranges(function)
        missing += [
            (name, p) for p, hint in hints.items() if p != "return" and holds_number(hint) and ranges[p] is None
        ]
    assert not missing


def wrong(hint, declared):
    """Numbers outside a range, in the shape that a parameter takes."""
    values = [math.nan, declared.low - 1, *([declared.high * 2 + 1] if declared.high < math.inf else [])]
    return [(value, value) if "tuple" in str(hint) else value for value in values if not math.isinf(value)]


def test_no_command_takes_nonsense():
    for _, function in functions():
        hints = typing.get_type_hints(function)
        for parameter, declared in declared_ranges(function).items():
            for value in wrong(hints[parameter], declared) if declared else ():
                with pytest.raises(ConfigError, match=f"--{parameter.replace('_', '-')} is"):
                    checked(function)(**{parameter: value})  # refused before the command is called at all


def fields(config, prefix="--"):
    """(flag, declared range) of every number inside a configuration."""
    for name, declared in declared_ranges(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}".replace("--agent.flow.", "--flow."), declared


# Values of the flow axes and of the Fisher metric state their bounds in words of their own (``__post_init__``), where
# bounds depend on each other; what is not finite is refused all the same.
OWN_WORDS = ("--flow.", "--agent.pairs.", "--agent.metric.")


def test_every_number_of_a_preset_has_a_range():
    missing = [(name, f) for name, (_, preset) in PRESETS.items() for f, declared in fields(preset) if declared is None]
    assert not [(name, flag) for name, flag in missing if not flag.startswith(OWN_WORDS)]


PRESET_OF = {flag: name for name, (_, preset) in PRESETS.items() for flag, _ in fields(preset)}
SIGNED = {"--data.reward_shift", "--agent.pairs.logit_mean", "--flow.time.logit_mean"}


def taken(flag, value, capsys, run):
    """What is wrong with the way in which ``train`` refuses a value; empty if it does as it should."""
    with pytest.raises(SystemExit) as stopped:
        main(["train", PRESET_OF[flag], f"{flag.replace('_', '-')}={value}", "--out", str(run)])
    told = capsys.readouterr().err
    named = flag.replace(".", "_").rpartition("_")[2] in told
    return "" if stopped.value.code == 2 and named and not run.exists() else f"{flag}: {stopped.value.code} {told}"


@pytest.mark.parametrize("value", ["nan", "-1e300"])
def test_no_option_of_train_takes_nonsense(value, capsys, tmp_path):
    flags = sorted(PRESET_OF.keys() - (set() if value == "nan" else SIGNED))
    assert not [told for flag in flags if (told := taken(flag, value, capsys, tmp_path / "run"))]
