"""What a suite of 10,000 runs asks of the machine where it is typed: reading its records, its tables, its next start.

::

    python tests/lab/many_records.py --json docs/records/many-records.json

makes 100, 1,000 and 10,000 records of 10 arms and 10 tasks from one of ours (50 to 100 episodes, some 20 kB each), and
handles each number in a process of its own. Processor time, beside whatever else runs, and the most memory.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTS = (100, 1_000, 10_000)
ARMS = TASKS = 10
TEMPLATE = Path(__file__).parents[2] / "docs/records/offline-rl/pointmaze-medium/fql-seed0.json"


def names(count):
    """Of every record: task, arm, seed."""
    return [
        (f"task{i}", f"arm{j}", k) for i in range(TASKS) for j in range(ARMS) for k in range(count // ARMS // TASKS)
    ]


def make(folder, count):
    """Write so many records, in which every run succeeds as often as chance has it."""
    value, chance = json.loads(TEMPLATE.read_text()), random.Random(0)
    for task, arm, seed in names(count):
        rate = chance.betavariate(4, 2)
        for episode in value["episodes"]:
            episode["success_step"] = 10 if chance.random() < rate else None
        value["training"]["experiment"]["seed"] = seed
        path = folder / task / f"{arm}-seed{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


def handle(folder):
    """Read the records, make the tables, and come to where a suite of ten runs more would start its first."""
    from flowpolicy.configs.suites import Arm, Suite
    from flowpolicy.evaluate.suite_table import load_records, suite_sheets
    from flowpolicy.lab.suite_jobs import plan_jobs, require_current

    arms, tasks = [f"arm{j}" for j in range(ARMS)], [f"task{i}" for i in range(TASKS)]
    count = len(list(folder.glob("*/*.json")))
    marks = [time.process_time()]

    def spent():
        marks.append(time.process_time())
        return marks[-1] - marks[-2]

    suite = Suite("", {arm: Arm("fql") for arm in arms}, dict.fromkeys(tasks, 0), (), count // ARMS // TASKS, 1)
    every = plan_jobs(suite, folder, folder / "none", folder)
    require_current(job for job in every if job.record.exists())
    start, before = spent(), _memory()
    found = load_records(folder, tasks, arms)
    read = spent()
    suite_sheets("many", found, arms[0])
    return {
        "records": count,
        "until_the_first_run_cpu_s": start,
        "reading_cpu_s": read,
        "tables_cpu_s": spent(),
        "memory_before_mib": before,
        "memory_mib": _memory(),
    }


def _memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    """Make, handle, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--handle", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.handle:
        sys.stdout.write(json.dumps(handle(arguments.handle)))
        return
    entries = []
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), count)
            words = [sys.executable, __file__, "--handle", folder]
            entries.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout))
        sys.stderr.write(f"{entries[-1]}\n")
    result = {"command": " ".join(["python", *sys.argv]), "arms": ARMS, "tasks": TASKS, "entries": entries}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
