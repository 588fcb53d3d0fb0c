"""Lifts by sight, taught: ``python -m tests.real_robot.teaching.lift_by_sight FOLDER [PRESET [FLAG ...]]``.

A simulated person shows 40 lifts through a fake SpaceMouse, with the twin's two cameras; PRESET learns from pictures
and the arm's own state; the policy then lifts in 20 episodes, stepped in the scene in simulated time. What is there
already is not made again. Leaves FOLDER/PRESET.json, a record like that of ``eval``. States of ``--seed 7`` are for
development, those of the record's seed have been met by nobody.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from flowpolicy.real_robot.session.episodes import next_number

from .measure_teaching import demonstrations

CAMERAS = ("front=twin:front,size=196x196,crop=84x84+56+48", "wrist=twin:wrist,size=84x84")
"""The front camera is cropped to where things happen: a pixel is 4 mm of the table, and 10 mm of the whole picture."""
EPISODES, SEED = 20, 1121


def flowpolicy(*words):
    """One command, as it would be typed."""
    sys.stdout.write(f"flowpolicy {shlex.join(map(str, words))}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "flowpolicy", *map(str, words)], check=True)


def main(folder, preset="dm1-franka-lift-image", *flags, seed=SEED):
    """Teach, train, lift."""
    folder = Path(folder)
    shown, run = folder / "shown", folder / preset
    if (missing := 41 - next_number(shown)) > 0:
        sys.stdout.write(f"{demonstrations('spacemouse', missing, shown, CAMERAS)}\n")
    if not run.exists():
        flowpolicy("train", preset, "--data.path", shown / "demos.hdf5", "--out", run, "--threads", 1, *flags)
    words = ("--driver", "scene", "--cameras", *CAMERAS, "--episodes", EPISODES, "--seed", seed)
    flowpolicy("robot", "run", run, *words, "--out", folder / f"played-{preset}", "--json", folder / f"{preset}.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
