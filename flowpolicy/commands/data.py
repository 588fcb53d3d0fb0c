"""``flowpolicy data make TASK``, ``render FILE``, ``rollouts RUN``, ``info FILE``, ``view FILE`` and others."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flowpolicy.commands import data_episodes
from flowpolicy.commands.arguments import call, pick, typed
from flowpolicy.commands.console import console
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.files import read_json, require_free, write_json
from flowpolicy.core.progress import Move, download_bar, progress_bar
from flowpolicy.core.ranges import Count, Natural, NonNegative, Seed, Workers

if TYPE_CHECKING:  # brings simulators' adapters
    from flowpolicy.envs.pusht import PushTConfig
    from flowpolicy.envs.rendered_data import StoredStates
    from flowpolicy.envs.robosuite import RobosuiteConfig
    from flowpolicy.train.run import Run

Renderer = Literal["fast", "exact", "collision"]

_SPREAD_ROWS = 100_000  # what the distances of a thousand states to all need: 0.4 GB


def run(argv: Sequence[str]) -> int:
    """Make, draw, record, download, describe, convert or edit a dataset."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "make": ("generate data with a scripted demonstrator", make),
        "render": ("add pictures to a file of simulator states", render),
        "observe": ("compute the observations of a file of simulator states", observe),
        "rollouts": ("record episodes of a run, a function or a network, failures among them", rollouts),
        "download": ("download a published file, or one of Minari's data sets", download),
        "label": ("add the rewards of every task to an OGBench file", label),
        "info": ("describe a file", info),
        "view": ("write a page that shows a file: episodes, films, traces, findings", view),
        "convert": ("write a dataset in another format", data_episodes.convert),
        "merge": ("put several datasets into one", data_episodes.merge),
        "split": ("share the episodes of a dataset out among several", data_episodes.split),
        "filter": ("keep some episodes of a dataset", data_episodes.filter),
        "edit": ("drop, relabel or trim episodes, rename observations", data_episodes.edit),
    }
    name, rest = pick(argv, commands, "data", "action")
    return call(commands[name][1], rest, f"data {name}")


def make(
    task: Annotated[str, tyro.conf.Positional],
    /,
    out: Path,
    episodes: Count = 200,
    seed: Seed = 0,
    quality: Literal["expert", "mixed", "multimodal"] = "expert",
    workers: Workers | None = None,
    overwrite: bool = False,
    cameras: tuple[str, ...] = (),
    size: tuple[Count, ...] = (),
    renderer: Renderer = "fast",
) -> None:
    """Generate data: RoboMimic HDF5 for robosuite's tasks, pusht and toy, D4RL HDF5 for maze2d, OGBench npz otherwise.

    Args:
        task: lift, can, square, pusht, toy, maze2d-umaze, -medium or -large; or of OGBench pointmaze-medium,
            cube-single, scene, puzzle-3x3 and their larger kin.
        out: file to write; .npz for OGBench, which gets FILE-val.npz with a tenth as many episodes beside it.
        episodes: number of (training) episodes in the file.
        seed: same seed, same file content, whatever the number of workers.
        quality: expert keeps successes only; mixed adds three levels and labelled failures as filter keys; multimodal,
            of lift, can and square, has successes of four operators whose ways differ. Mazes and OGBench have one.
        workers: processes; one per core unless given.
        overwrite: replace an existing file at --out.
        cameras: lift, can and square, and 'top' of pusht: cameras whose pictures the file gets too, as
            `flowpolicy data render` adds them.
        size: height and width of a picture, pixels; one number for both; 84, of pusht 96, unless given.
        renderer: how pictures are drawn, as in `flowpolicy data render`.

    """
    from flowpolicy.envs.demonstrators import TASKS, make_demonstrations
    from flowpolicy.envs.maze2d_data import MAZES, make_maze2d
    from flowpolicy.envs.ogbench_data import RECORDERS, make_ogbench, validation_episodes, validation_path

    known = [*TASKS, *MAZES, *RECORDERS]
    if task not in known:
        raise ConfigError(f"nothing generates data of '{task}'", expected=nearest(task, known))
    scripted = task in TASKS
    if not scripted and quality != "expert":
        raise ConfigError(f"--quality {quality} does not exist for {task}", fix="leave --quality out")
    drawn = _cameras(cameras, size, renderer, task) if cameras else None
    require_free(out, overwrite)
    states = out.with_name(f".{out.name}.states.hdf5") if drawn else out  # kept until the pictures are drawn
    if not scripted and task not in MAZES:
        require_free(validation_path(out), overwrite)
    told = ""
    held_out = 0 if scripted or task in MAZES else validation_episodes(episodes)
    with progress_bar(f"make {task}", episodes + held_out) as move:
        if scripted and not (drawn and _is_made(states, task, episodes, seed, quality)):
            made = make_demonstrations(task, states, episodes, seed, quality, workers, move)
            told = f": {made.steps:,} steps; {made.successes} of {made.attempts} attempts succeeded"
        elif scripted:
            move(episodes)
        elif task in MAZES:
            make_maze2d(task, out, episodes, seed, workers, move)
        else:
            make_ogbench(task, out, episodes, seed, workers, move)
    if drawn:
        write_json(_made_of(states), [task, episodes, seed, quality])
        _render(states, out, drawn, compress=False, workers=workers)
        for path in (states, _made_of(states)):
            path.unlink()
    sys.stdout.write(f"wrote {out}{told}\n")


def render(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    cameras: tuple[str, ...] = (),
    size: tuple[Count, ...] = (),
    renderer: Renderer = "fast",
    compress: bool = False,
    own_model: bool = False,
    workers: Workers | None = None,
    overwrite: bool = False,
) -> None:
    """Draw the pictures of every state of a robosuite or PushT file, and write them and all that it holds to --out.

    Stopped, the same command goes on after the last episode that was drawn.

    Args:
        file: RoboMimic HDF5 with simulator states, or robosuite's own demo.hdf5 of states and actions, which gets
            observations too.
        out: file to write, in RoboMimic's layout: obs/agentview_image and so on, uint8, rows from the top down.
        cameras: of the scene: agentview, robot0_eye_in_hand, frontview, birdview, sideview, robot0_robotview; the first
            two unless given. Of PushT 'top', the only one.
        size: height and width of a picture, pixels; one number for both; 84, of PushT 96, unless given.
        renderer: fast leaves out reflections and multisampling; exact gives the pixels of robosuite's own camera
            observations, for five to ten times the time; collision draws the few shapes that collide, the fastest.
            A policy refuses to act on pictures drawn otherwise than those that it learned from.
        compress: compress pictures without loss: a third of the size, slower to read.
        own_model: put the states into the model of the installed robosuite instead of the stored one, for files of
            older releases; its objects and mounts may have other sizes.
        workers: processes; one per core unless given.
        overwrite: replace an existing file at --out.

    """
    require_free(out, overwrite)
    config = _cameras(cameras, size, renderer, file)
    found = _render(file, out, config, compress=compress, own_model=own_model, workers=workers)
    sys.stdout.write(f"wrote {out}: {len(found.names)} episodes, {found.steps:,} x {len(config.images())} pictures\n")


def observe(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    own_model: bool = False,
    workers: Workers | None = None,
    overwrite: bool = False,
) -> None:
    """Compute the observations of every stored state of a robosuite file, and write them and all it holds to --out.

    Rewards and dones are computed too where the file has none. Pictures are drawn by `flowpolicy data render`.

    Args:
        file: robosuite's own demo.hdf5, or a RoboMimic file without observations.
        out: file to write, in RoboMimic's layout.
        own_model: put the states into the model of the installed robosuite instead of the stored one, for files of
            older releases; its objects and mounts may have other sizes. What followed the last action stays unknown.
        workers: processes; one per core unless given.
        overwrite: replace an existing file at --out.

    """
    from flowpolicy.envs.rendered_data import read_source
    from flowpolicy.envs.robosuite import RobosuiteConfig

    require_free(out, overwrite)
    if file.resolve() == out.resolve():
        raise ConfigError(f"{out} is what is read", fix="choose another place: nothing is changed in place")
    if not read_source(file).raw:
        raise ConfigError(f"{file} has observations", fix="see them: flowpolicy data info FILE")
    found = _render(file, out, RobosuiteConfig(), compress=False, own_model=own_model, workers=workers)
    sys.stdout.write(f"wrote {out}: {len(found.names)} episodes, {found.steps:,} steps\n")


def _made_of(states: Path) -> Path:
    """The file that says what a file of states was made of."""
    return states.with_suffix(".json")


def _is_made(states: Path, *of: str | int) -> bool:
    """Whether an earlier command, stopped while it drew, has made these very states."""
    return states.is_file() and _made_of(states).is_file() and read_json(_made_of(states)) == list(of)


def _cameras(
    cameras: Sequence[str], size: Sequence[int], renderer: str, of: str | Path
) -> RobosuiteConfig | PushTConfig:
    """Cameras of one size, and how they draw, for a task or the stored states of a file."""
    from flowpolicy.envs import ENVS
    from flowpolicy.envs.pusht import ENV_ID, PushTConfig
    from flowpolicy.envs.rendered_data import read_source
    from flowpolicy.envs.robosuite import RobosuiteConfig

    if len(size) > 2:
        raise ConfigError(f"--size {' '.join(map(str, size))}", expected="height and width, or one number for both")
    if len(set(cameras)) < len(cameras):
        raise ConfigError(f"--cameras {' '.join(cameras)}", expected="every camera once")
    if isinstance(of, Path):
        of = "pusht" if read_source(of).env_args["env_name"] == ENV_ID else "lift"
    config = ENVS.get(of)
    if not isinstance(config, RobosuiteConfig | PushTConfig):
        raise ConfigError(f"--cameras with {of}, of which no pictures are drawn", expected="lift, can, square or pusht")
    height, *rest = size or (96 if isinstance(config, PushTConfig) else 84,)
    return config.with_cameras(cameras, height, rest[0] if rest else height, renderer)


def _render(
    file: Path,
    out: Path,
    config: RobosuiteConfig | PushTConfig,
    compress: bool,
    workers: int | None,
    own_model: bool = False,
) -> StoredStates:
    """Draw a file behind a bar that says how long it takes."""
    from flowpolicy.envs.rendered_data import read_source, render_file
    from flowpolicy.envs.rendering import require_opengl
    from flowpolicy.envs.robosuite import RobosuiteConfig

    total = read_source(file).steps
    if isinstance(config, RobosuiteConfig) and config.cameras:
        require_opengl()
    doing = "render" if config.images() else "observe"
    with contextlib.ExitStack() as bar:
        moves: list[Move] = []

        def progress(drawn: int) -> None:
            if not moves:  # what an earlier command drew took this one no time
                moves.append(bar.enter_context(progress_bar(f"{doing} {out.name}", total, drawn)))
            moves[0](drawn)

        return render_file(
            file, out, config, compress=compress, own_model=own_model, workers=workers, progress=progress
        )


def rollouts(
    run: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path,
    env: str = "",
    episodes: Count = 200,
    steps: Count | None = None,
    seed: Seed = 0,
    noise_scale: tuple[NonNegative, NonNegative] = (1.0, 1.0),
    action_noise: NonNegative = 0.0,
    written_as: Annotated[Literal["", "d4rl", "ogbench", "robomimic", "minari"], tyro.conf.arg(name="format")] = "",
    workers: Workers | None = None,
    overwrite: bool = False,
) -> None:
    """Record episodes of a run, of a function or of a network's numbers, failures among them, with simulator states.

    `flowpolicy data rollouts hopper-sac.npz hopper-trpo.npz --env hopper --steps 200000 --out hopper.hdf5` records half
    of the steps with either network. The file appears whole, or not at all.

    Args:
        run: who acts, in turn: run folders (their newest checkpoint) or checkpoint folders; networks as npz of numbers
            (w0, b0, w1, ..., read without pickle); or module:function of (observation, generator). A function's module
            is imported and so its code runs: name only what you would run yourself.
        out: file to write; RoboMimic's gets filter keys successful and failed.
        env: where to act, e.g. hopper, door, lift; unless given the one that a policy was trained for.
        episodes: number of episodes, from initial states that no evaluation has.
        steps: number of steps instead of episodes; the last episode of each behaviour is cut off.
        seed: same seed, same file content, whatever the number of workers.
        noise_scale: lowest and highest scale of the behaviour's own noise (the policy's initial noise, the network's
            Gaussian); episodes take five even steps in turn.
        action_noise: deviation of Gaussian noise that is added to every action of any behaviour.
        written_as: d4rl with infos/qpos and qvel, ogbench, robomimic or minari; as data of the environment are shared
            unless given.
        workers: processes; one per core unless given.
        overwrite: replace an existing file at --out, unless a run was trained on it.

    """
    require_free(out, overwrite)
    from flowpolicy.envs import find_env, normalized_score
    from flowpolicy.envs.behaviour_recording import BehaviourRequest, format_of, record_behaviours, recordable
    from flowpolicy.envs.behaviours import BehaviourSource
    from flowpolicy.train.run import Run

    sources = tuple(map(BehaviourSource, run))
    if not sources:
        raise ConfigError("data rollouts: nobody is named who acts", expected="a run, an npz, or module:function")
    runs = [Run.load(source.path) for source in sources if source.kind == "run"]
    for source, acting in zip((s for s in sources if s.kind == "run"), runs, strict=True):
        if out.resolve() == Path(acting.experiment.data.path).resolve():
            raise ConfigError(f"{out} is the file that {source.path} was trained on", fix="choose another --out")
    if not env and not runs:
        raise ConfigError(f"{run[0]} does not say where it acts", fix="--env NAME, e.g. --env hopper")
    name = env or runs[0].contract.spec.env_id
    simple = len(run) == 1 and runs and steps is None and not action_noise and not env and not written_as
    if simple and name in ("robosuite/Lift", "robosuite/PickPlaceCan", "flowpolicy/Toy"):
        _own_rollouts(runs[0], run[0], out, episodes, seed=seed, noise_scale=noise_scale, workers=workers)
        return
    config = recordable(find_env(name), name)
    spec = config.spec()
    asked = BehaviourRequest(sources, episodes, steps or 0, seed, noise_scale, action_noise)
    for source in sources:
        if source.kind != "run":
            for scale in noise_scale:
                source.load(spec, scale)  # refused before workers start
    facts = {"behaviours": [source.facts() for source in sources], "seed": seed, "noise_scale": noise_scale}
    facts |= {"env": spec.env_id, "env_version": spec.env_version, "action_noise": action_noise}
    with progress_bar(f"rollouts {name}", steps or episodes) as move:
        done = record_behaviours(
            config, asked, out, written_as or format_of(config), provenance=facts, workers=workers, progress=move
        )
    mean = sum(one[0] for one in done) / len(done)
    told = f"{sum(one[1] for one in done)} succeeded, " if spec.defines_success else ""
    score = normalized_score(spec.env_id)
    told += f"mean return {mean:.1f}" + (f", normalised {score(mean):.1f}" if score else "")
    sys.stdout.write(f"wrote {out}: {len(done)} episodes, {sum(one[2] for one in done):,} steps, {told}\n")


def _own_rollouts(
    acting: Run,
    run: Path,
    out: Path,
    episodes: int,
    *,
    seed: int,
    noise_scale: tuple[float, float],
    workers: int | None,
) -> None:
    """Episodes of a run in an environment that can be restored, with the filter keys that groups are made from."""
    from flowpolicy.envs import find_env
    from flowpolicy.envs.labelling import require_restorable
    from flowpolicy.envs.policy_rollouts import record_rollouts

    name, folder = acting.contract.spec.env_id, acting.checkpoint
    config = require_restorable(find_env(name), name, fix="record a run of one of these")
    facts = {"policy": str(folder), "policy_sha256": acting.identity.sha256, "seed": seed, "noise_scale": noise_scale}
    with progress_bar(f"rollouts {name}", episodes) as move:
        successes = record_rollouts(
            config,
            folder,
            out,
            episodes,
            seed=seed,
            noise_scale=noise_scale,
            provenance=facts,
            workers=workers,
            progress=move,
        )
    sys.stdout.write(f"wrote {out}: {successes} of {episodes} episodes succeeded\n")


def download(name: Annotated[str, tyro.conf.Positional], /, sha256: str = "", folder: Path | None = None) -> None:
    """Download a published dataset by name, unless it is there already, and print its path.

    Args:
        name: e.g. door-human-v1, antmaze-umaze-v2, cube-single-play-v0, minari:D4RL/door/human-v2,
            hf://datasets/USER/NAME@REVISION of the Hugging Face hub, or one object or a folder of them in a store:
            s3://BUCKET/NAME, gs://BUCKET/NAME, https://HOST/NAME (extra 'remote').
        sha256: expected hash of the file, needed where flowpolicy has none pinned.
        folder: where to put it; default ~/.cache/flowpolicy/datasets. Minari has its own.

    """
    from flowpolicy.core.object_store import find_address
    from flowpolicy.data import hub
    from flowpolicy.data.catalogue import find_published
    from flowpolicy.data.download import fetch
    from flowpolicy.data.minari import PREFIX, fetch_minari
    from flowpolicy.data.remote_data import fetch_data

    address = find_address(name)
    if address is not None:
        with download_bar(f"download {address.url}") as progress:
            path = fetch_data(address, folder, expected_sha256=sha256, progress=progress)
    elif name.startswith(hub.PREFIX):
        if sha256:
            raise ConfigError("--sha256 is of one file", fix=f"leave it out: {hub.LOCK} beside the data has all hashes")
        with download_bar(f"download {name}") as progress:
            path = hub.fetch_hub(name, folder, progress=progress)
    elif name.startswith(PREFIX):
        path = fetch_minari(name)
    else:
        entry = find_published(name)
        with download_bar(f"download {name}") as progress:
            path = fetch(entry, folder, expected_sha256=sha256, progress=progress)
    sys.stdout.write(f"{path}\n")


def label(file: Annotated[Path, tyro.conf.Positional], /, env: str, out: Path, overwrite: bool = False) -> None:
    """Add the rewards and masks of every task to an OGBench file (the official ones carry none).

    Args:
        file: OGBench npz with qpos.
        env: its environment, e.g. cube-single.
        out: file to write; with --overwrite it may be the same.
        overwrite: replace an existing file at --out.

    """
    from flowpolicy.envs.ogbench_data import label_file
    from flowpolicy.envs.ogbench_env import OGBenchConfig

    config = OGBenchConfig(env)
    require_free(out, overwrite)
    label_file(file, config.env, out)
    sys.stdout.write(f"wrote {out}\n")


def info(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    spread: bool = False,
    pictures: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Describe a dataset file as a table.

    Args:
        file: RoboMimic, D4RL or Minari HDF5, OGBench npz, a LeRobot folder, or a group file.
        spread: also how far actions spread among similar states, and the Fisher Decorator's metric.time for that.
        pictures: also draw a contact sheet of what the cameras saw, as PNG.
        overwrite: replace an existing file at --pictures.

    """
    from flowpolicy.agents.groups.group_file import describe_groups, is_groups, read_groups
    from flowpolicy.data.dataset_checks import describe
    from flowpolicy.data.dataset_report import print_description, print_rows

    if is_groups(file):
        if spread:
            raise ConfigError(f"{file} holds groups", expected="--spread with a dataset")
        print_rows(str(file), describe_groups(read_groups(file)), console())
        return
    if pictures is not None:
        require_free(pictures, overwrite)
    print_description(describe(file), console())
    if pictures is not None:
        from flowpolicy.data.contact_sheet import draw_contact_sheet

        draw_contact_sheet(file, pictures)
        sys.stdout.write(f"picture {pictures}\n")
    if spread:
        print_rows("spread", _spread(file), console())


def view(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path = Path("view.html"),
    films: Natural = 12,
    videos_mb: NonNegative = 32.0,
    rerun: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write one HTML file that shows a dataset and opens offline in any browser.

    Its episodes with traces, films of some of them, distributions, and what the doctor finds, with a jump to the step.

    Args:
        file: a dataset in any format that `flowpolicy data info` reads.
        out: file to write.
        films: episodes that can be played, where there are pictures: the first, those that the doctor flags, and others
            evenly spread.
        videos_mb: megabytes of films that the file holds at most; what is left out is told.
        rerun: also write those episodes to this file for the viewer of rerun (extra rerun): rerun FILE.rrd.
        overwrite: replace existing files at --out and --rerun.

    """
    require_free(out, overwrite)
    if rerun is not None:
        require_free(rerun, overwrite)
        if rerun.absolute() == out.absolute():
            raise ConfigError(f"--out and --rerun are both {out}", expected="two files")
    from flowpolicy.report.dataset_pages import write_dataset_view

    written = write_dataset_view(file, out, films=films, videos_mb=videos_mb, command=typed(), rerun=rerun)
    if rerun is not None:
        sys.stdout.write(f"rerun {rerun} ({rerun.stat().st_size / 1e6:.1f} MB), to open with: rerun {rerun}\n")
    for line in written.left_out:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"view {out} ({written.size / 1e6:.1f} MB), to open in a browser\n")


def _spread(file: Path) -> list[tuple[str, str]]:
    """Spread of the actions in [-1, 1] among similar states, and the flow time of the resolution-floor rule."""
    import torch

    from flowpolicy.core import keys
    from flowpolicy.data.dataset import DataConfig, load_dataset
    from flowpolicy.data.normalize import Normalizer, NormalizerConfig
    from flowpolicy.flows.resolution import neighbourhood_std, time_for

    dataset = load_dataset(DataConfig(path=str(file)))
    steps = dataset.steps
    rows = torch.linspace(0, steps.rows - 1, min(_SPREAD_ROWS, steps.rows)).long()
    normalizer = Normalizer.fit(dataset, NormalizerConfig())
    obs = normalizer.obs({name: column[rows] for name, column in steps[keys.OBS].items()})
    flat = torch.cat([column.flatten(1) for column in obs.values()], dim=1)
    std = float(neighbourhood_std(flat, normalizer.action(steps[keys.ACTION][rows])))
    time = f"{time_for(std):.3f}, which blurs by half of that"
    return [("among similar states", f"{std:.3f} of actions scaled to [-1, 1]"), ("metric.time", time)]
