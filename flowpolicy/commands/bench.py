"""``flowpolicy bench update|latency|data|rows|rollout|serve|device|startup|seams|bridge``."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from flowpolicy.commands.arguments import call, pick, typed
from flowpolicy.commands.console import console
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.memory import keep_freed_memory
from flowpolicy.core.ranges import Count, Depth, Few, NonNegative, Positive, Range, Threads, Width

if TYPE_CHECKING:
    from flowpolicy.policy import Policy


def run(argv: Sequence[str]) -> int:
    """Measure one kind of speed."""
    table: dict[str, tuple[str, Callable[..., None]]] = {
        "update": ("gradient step of MeanFlow over flow matching and over the bare matrix products", update),
        "latency": ("one-step latency over the bare matrix-vector products of the same weights", latency),
        "data": ("share of an update spent on sampling its batch", data),
        "rows": ("what a row costs in files of more and more rows: load, memory, batches", rows),
        "serve": ("answers in time of a policy server, from a few robots to several times what it bears", serve),
        "rollout": ("environment steps per second over those of the bare simulator", rollout),
        "render": ("processor time of a picture of robosuite's Lift by how it is drawn", render),
        "device": ("everything about one device, best a GPU, within a budget of seconds", device),
        "startup": ("processor time from nothing to the end of a command, over importing torch", startup),
        "seams": ("what reaches a robot arm where chunks disagree, per chunk mode", seams),
        "bridge": ("how late the ticks of a robot's bridge are, with cameras and without", bridge),
    }
    name, rest = pick(argv, table, "bench", "measurement")
    keep_freed_memory()  # as training does
    return call(table[name][1], rest, f"bench {name}")


def update(
    preset: Annotated[str, tyro.conf.Positional] = "",
    /,
    peer: Literal["", "fql"] = "",
    peer_path: Path | None = None,
    peer_python: str = "",
    threads: Threads = 1,
    rounds: Count = 30,
    batch_size: Count = 256,
    width: Width = 512,
    depth: Depth = 4,
    json: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> None:
    """Compiled gradient steps: MeanFlow and flow matching with one MLP of 4 x 512, or those of a preset.

    Of a preset: from how many updates on compiling pays, which --compile auto goes by; or FQL against a peer.
    In processor seconds, on a CPU.

    Args:
        preset: whose agent is measured.
        peer: public implementation to compare with, run from --peer-path.
        peer_path: checkout of the peer (github.com/seohongpark/fql).
        peer_python: Python that has the peer's packages; this one unless given.
        threads: torch threads, and cores of the peer.
        rounds: alternated rounds.
        batch_size: rows per batch; 256 against a peer.
        width: size of the hidden layers of the networks of FQL; 512 is the published size.
        depth: number of their hidden layers; 4 is the published size.
        json: where to write the figures.
        overwrite: replace an existing file at --json.
        device: cpu or a CUDA device; a peer is compared with on the CPU.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.peer import peer_table
    from flowpolicy.bench.update import bench_update, update_table

    if preset and not peer:
        _show(_compiling(preset, rounds, batch_size, (width, depth)), update_table, json)
        return

    if peer:
        if device != "cpu":
            raise ConfigError(f"--device {device} with a peer, which runs on the CPU", fix="leave --device out")
        result = _against_peer(preset, peer, peer_path, peer_python, threads, rounds, (width, depth))
        _show(result, peer_table, json)
        return
    _show(bench_update(threads=threads, rounds=rounds, batch_size=batch_size, device=device), update_table, json)


def _compiling(preset: str, rounds: int, batch_size: int, size: tuple[int, int]) -> dict[str, Any]:
    from flowpolicy.bench.peer import resized
    from flowpolicy.bench.update import bench_compiling
    from flowpolicy.configs.presets import PRESETS

    name, _ = pick([preset], PRESETS, "bench update", "preset")
    agent = resized(PRESETS[name][1].agent, *size)
    return {**bench_compiling(agent, 19, 7, batch_size=batch_size, rounds=rounds, calls=5), "preset": name}


def _against_peer(
    preset: str, peer: str, path: Path | None, python: str, threads: int, rounds: int, size: tuple[int, int]
) -> dict[str, Any]:
    from flowpolicy.bench.peer import bench_peer, resized
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.envs import find_env

    if path is None or not preset:
        raise ConfigError(
            f"bench update {preset} --peer {peer} lacks the preset or the peer's folder",
            expected="PRESET --peer fql --peer-path DIR",
            fix="git clone https://github.com/seohongpark/fql DIR",
        )
    name, _ = pick([preset], PRESETS, "bench update", "preset")
    experiment = PRESETS[name][1]
    spec = find_env(experiment.env).spec()
    agent = resized(experiment.agent, *size)
    return {**bench_peer(agent, spec, path, python, threads=threads, rounds=rounds), "preset": name}


def latency(
    run: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    engines: tuple[str, ...] = (),
    batches: tuple[Few, ...] = (1,),
    threads: tuple[Threads, ...] = (1,),
    nfe: Few | None = None,
    calls: Count = 2000,
    rounds: Count = 10,
    peer_python: str = "",
    json: Path | None = None,
    overwrite: bool = False,
    picture: Path | None = None,
) -> None:
    """Latency of whole decisions, engine x batch x threads, over the bare products of the same weights.

    Args:
        run: run or checkpoint folder; an untrained DM1 with Lift's sizes unless given.
        engines: numpy, onnx, aotinductor, compile, eager; all unless given. Those of a GPU: flowpolicy bench device.
        batches: batch sizes.
        threads: numbers of threads.
        nfe: network evaluations per chunk; the contract's unless given.
        calls: timed calls per entry, over all rounds.
        rounds: alternated rounds.
        peer_python: Python that can import lerobot: its diffusion policy joins the rounds, in 10 and 100 steps.
        json: where to write the figures.
        overwrite: replace existing files at --json and --picture.
        picture: where to draw them; RUN/bench/latency.png unless given.

    """
    _require_free(json, overwrite)
    _require_free(picture, overwrite)
    import tempfile

    from flowpolicy.bench.latency import bench_latency
    from flowpolicy.bench.latency_figure import draw_latency, latency_table
    from flowpolicy.core.checkpoint import resolve, run_of
    from flowpolicy.policy.engines import ENGINES, GPU_ALONE

    for name in engines:
        pick([name], dict.fromkeys(ENGINES, ("", None)), "bench latency --engines", "engine")
    if not batches or not threads or min(*batches, *threads, calls, rounds) < 1:
        raise ConfigError(f"--batches {batches} --threads {threads}", expected="one or more numbers, each at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        result = bench_latency(
            run or _untrained(Path(scratch)),
            engines or [name for name in ENGINES if name not in GPU_ALONE],
            batches,
            threads,
            nfe=nfe,
            calls=calls,
            rounds=rounds,
            peer_python=peer_python,
        )
    title = "untrained DM1"
    if run:
        about = _checkpoint(run)
        result |= about
        title = f"{run} at step {about['step']:,}"
        picture = picture or run_of(resolve(run)) / "bench" / "latency.png"
    _show(result, latency_table, json)
    if picture is not None:
        draw_latency(result, f"{title}, nfe {result['nfe']}", picture)
        sys.stdout.write(f"picture {picture}\n")


def _untrained(folder: Path) -> Path:
    from flowpolicy.agents.cloning.dm1 import DM1
    from flowpolicy.bench.update import make_agent

    policy: Policy = make_agent(DM1(), obs=19, action=7).policy()
    policy.save(folder)
    return folder


def data(
    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    batch_size: Count = 64,
    rounds: Count = 30,
    threads: Threads = 1,
    json: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    frame_store: Literal["raw", "jpeg"] = "raw",
) -> None:
    """Share of a compiled update spent on sampling its batch from a million rows, windows and transitions.

    Args:
        presets: whose agents are updated; one of every kind of batch unless given.
        batch_size: rows per batch.
        rounds: alternated rounds of 32 updates.
        threads: torch threads.
        json: where to write the figures.
        overwrite: replace an existing file at --json.
        device: where batches are wanted: cpu or a CUDA device.
        frame_store: how the frames of presets that see are kept.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.batches import bench_data, data_table
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.core.devices import find_device

    place = str(find_device(device))
    names = [pick([name], PRESETS, "bench data", "preset")[0] for name in presets or _FED]
    experiments = {name: PRESETS[name][1].with_(batch_size=batch_size, compile="on", device=place) for name in names}
    for name, each in experiments.items():
        experiments[name] = each.with_(data=dataclasses.replace(each.data, frame_store=frame_store))
    _show(bench_data(experiments, rounds=rounds, threads=threads), data_table, json)


_FED = ("flow-bc-cube-single", "dm1-franka-reach", "fql-cube-single", "iql-cube-single", "qc-fql-cube-single")
"""Presets with networks of 3 x 256: windows of one action and of a chunk, transitions of one step and of several."""


def rows(
    sizes: tuple[Count, ...] = (100_000, 1_000_000, 10_000_000),
    rounds: Count = 30,
    load: bool = False,
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Time per row of a batch for data of more and more rows; with --load also time and memory to the first batch.

    Args:
        sizes: rows of the data.
        rounds: alternated rounds of 32 batches of 256.
        load: make D4RL files of so many rows, load each in memory and memory-mapped, and draw from them. They lie in
            the temporary folder and are removed: 98 bytes a row, and 109 for mapped columns.
        json: where to write the figures.
        overwrite: replace an existing file at --json.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.rows import bench_rows, rows_table

    _show(bench_rows(sizes, rounds=rounds, load=load), rows_table, json)


def rollout(
    tasks: tuple[Literal["Lift", "PickPlaceCan", "NutAssemblySquare"], ...] = (
        "Lift",
        "PickPlaceCan",
        "NutAssemblySquare",
    ),
    slots: Threads = 4,
    rounds: Count = 10,
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Control steps of robosuite: its own, compiled, and through worker processes, over the bare physics of the model.

    Args:
        tasks: robosuite tasks.
        slots: slots of the vector environment, dealt to one worker process per core.
        rounds: alternated rounds of 20 steps.
        json: where to write the figures.
        overwrite: replace an existing file at --json.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.env_steps import bench_rollout, rollout_table

    _show(bench_rollout(tasks=tasks, num_envs=slots, rounds=rounds), rollout_table, json)


def startup(rounds: Count = 5, json: Path | None = None, overwrite: bool = False) -> None:
    """Processor time of --help, of a training of two updates and of a simulator's worker, over importing torch.

    Args:
        rounds: alternated rounds.
        json: where to write the figures.
        overwrite: replace an existing file at --json.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.startup import bench_startup, startup_table

    _show(bench_startup(rounds=rounds), startup_table, json)


def render(size: Width = 84, states: Few = 8, json: Path | None = None, overwrite: bool = False) -> None:
    """Processor time of a picture of robosuite's Lift: as robosuite draws it, and without what costs the most.

    Args:
        size: pixels a side.
        states: initial states that every setting draws, in turn.
        json: where to write the figures.
        overwrite: replace an existing file at --json.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.render_frames import bench_render, render_table

    _show(bench_render(size=size, states=states), render_table, json)


def serve(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    robots: tuple[Count, ...] = (20, 40, 60, 80, 100, 120, 160, 200, 240),
    rate_hz: Positive = 50.0,
    seconds: Positive = 2.0,
    rounds: Few = 3,
    budget_ms: Positive = 20.0,
    max_batch: Few = 8,
    clock: Literal["processor", "wall"] = "processor",
    before: Path | None = None,
    engine: str = "auto",
    threads: Threads = 1,
    json: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> None:
    """Answers in time of a policy server on this machine, from a few robots to several times what it bears.

    Robots ask at a fixed rate whatever comes back. A server that sheds keeps most of its peak at twice the load; one
    that collapses answers nobody in time.

    Args:
        run: run that is served, in a process of its own.
        robots: numbers of robots that are tried, ascending.
        rate_hz: requests per second of each robot.
        seconds: how long each number of robots asks.
        rounds: over which medians are taken.
        budget_ms: deadline of every request.
        max_batch: most robots computed together.
        clock: 'processor' counts the server's own processor time, as if it had a core to itself, whatever else runs;
            'wall' has server and robots run side by side, on a core each, and needs a quiet machine.
        before: folder that another version of flowpolicy is installed in (pip install --no-deps --target FOLDER .),
            to be measured in turns with this one.
        engine: of the server, see flowpolicy serve.
        threads: of the engine.
        json: where to write the figures.
        overwrite: replace an existing file at --json.
        device: of the engine: cpu or a CUDA device.

    """
    import contextlib

    _require_free(json, overwrite)
    from flowpolicy.bench.server_load import bench_serve, in_processor_time, in_wall_time, serve_table, served
    from flowpolicy.commands.serve import batch_sizes

    if clock == "processor" and device != "cpu":
        raise ConfigError(f"--device {device} in the processor's time, which a GPU does not use", fix="--clock wall")
    if before is not None and not (before / "flowpolicy" / "__init__.py").is_file():
        raise ConfigError(
            f"no flowpolicy is installed in {before}",
            expected="a folder with a folder 'flowpolicy'",
            fix=f"pip install --no-deps --target {before} CHECKOUT, from a checkout of the other version",
        )
    about, versions = _checkpoint(run), {"now": None} | ({} if before is None else {"before": before})
    load = {"rate_hz": rate_hz, "seconds": seconds, "budget_ms": budget_ms}
    with contextlib.ExitStack() as stack:
        if clock == "processor":
            order = {**load, "engine": engine, "threads": threads, "batches": batch_sizes(max_batch)}
            servers = {name: in_processor_time(run, where, **order) for name, where in versions.items()}
        else:
            most = {"engine": engine, "threads": threads, "max-clients": max(robots), "max-batch": max_batch}
            most |= {} if device == "cpu" else {"device": device}  # an earlier version may know of none
            flags = [word for name, value in most.items() for word in (f"--{name}", str(value))]
            servers = {
                name: in_wall_time(stack.enter_context(served(run, flags, where)), **load)
                for name, where in versions.items()
            }
        result = bench_serve(servers, robots=robots, rate_hz=rate_hz, rounds=rounds)
    about |= {**load, "clock": clock, "max_batch": max_batch, "engine": engine, "threads": threads}
    _show({**result, **about}, serve_table, json)


def device(
    device: str = "cuda",
    seconds: Positive = 450.0,
    small: bool = False,
    only: tuple[Literal["facts", "plumbing", "latency", "seeds", "updates", "tests"], ...] = (),
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """What a device says: facts, plumbing of every agent, latency, seeds, updates, tests; a record after every item.

    Args:
        device: cuda, cuda:1, ..., or cpu for a rehearsal.
        seconds: begin nothing after so many seconds.
        small: tiny networks, a few repeats: for a rehearsal.
        only: only these sections.
        json: where to write the figures, anew after every item.
        overwrite: replace an existing file at --json.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.device import SECTIONS, DeviceBench, device_table
    from flowpolicy.core.spec import library_versions
    from flowpolicy.evaluate.report import git_commit

    about = {"device": device, "command": typed(), "commit": git_commit(), "versions": library_versions()}
    bench = DeviceBench(device, json, seconds, small, about)
    console().print(device_table(bench.run(only or SECTIONS)))


def seams(
    disagreement: NonNegative = 0.010,
    latency: NonNegative = 0.100,
    seconds: Annotated[float, Range(5, 10_000)] = 20.0,
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Jump at the seams of chunks, per chunk mode; simulated time, the same figures on every machine.

    Args:
        disagreement: standard deviation of a chunk's error, rad.
        latency: from observation to chunk, s.
        seconds: simulated time.
        json: where to write the figures.
        overwrite: replace an existing file at --json.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.seams import bench_seams, seams_table

    _show(bench_seams(disagreement=disagreement, latency=latency, seconds=seconds), seams_table, json)


def bridge(
    seconds: Annotated[float, Range(2, 600)] = 10.0,
    rounds: Few = 2,
    size: Width = 84,
    engine: str = "auto",
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Lateness of the bridge's 250 ticks a second: two cameras, a policy that sees and a recorder, or cameras off.

    Sessions of processes in real time, in turn, on the arm in NumPy; what else the machine does is in the figures.

    Args:
        seconds: of a running arm in each session.
        rounds: sessions of each kind.
        size: pixels a side of the cameras' pictures.
        engine: what computes the policy's decisions: onnx, eager, ...; auto measures those that are ready in seconds.
        json: where to write the figures.
        overwrite: replace an existing file at --json.

    """
    _require_free(json, overwrite)
    from flowpolicy.bench.bridge_lateness import bench_bridge, bridge_table

    _show(bench_bridge(seconds=seconds, rounds=rounds, size=size, engine=engine), bridge_table, json)


def _checkpoint(run: Path) -> dict[str, Any]:
    """Which checkpoint was measured."""
    from flowpolicy.core.checkpoint import resolve
    from flowpolicy.core.run_places import run_name
    from flowpolicy.evaluate.records import identity

    measured = identity(resolve(run))
    return {"run": run_name(run), "step": measured.step, "checkpoint_sha256": measured.sha256}


def _require_free(json: Path | None, overwrite: bool) -> None:
    """Refuse to write over a file, before the minutes of a measurement."""
    from flowpolicy.core.files import require_free

    if json is not None:
        require_free(json, overwrite)


def _show(result: dict[str, Any], table: Any, json: Path | None) -> None:
    console().print(table(result))
    if json is not None:
        from flowpolicy.core.files import write_json
        from flowpolicy.core.spec import library_versions
        from flowpolicy.evaluate.report import git_commit

        record = {"command": shlex.join(["flowpolicy", *sys.argv[1:]]), "commit": git_commit()}
        write_json(json, {**result, **record, "versions": library_versions()})
