"""A suite on two Ray nodes of one machine, of which one is killed in the middle, and the driver too.

Records and weights are those of ``--jobs 1``, bit for bit::

    python tests/lab/ray_deaths.py --out /tmp/deaths --json docs/records/suite-on-ray.json
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_worker_register_timeout_seconds": "300"}


@contextlib.contextmanager
def two_nodes():
    """Yield a cluster of a head and a worker node of one core each, and the worker node."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **PATIENCE}
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(include_dashboard=False, num_cpus=1, **_ports())
        yield cluster, cluster.add_node(num_cpus=1, **_ports())
    finally:
        cluster.shutdown()


def _ports():
    """Ports of a node's agents: one that knows them does not wait for agents, which start slowly beside other work."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as stack:
        found = {}
        for name in names:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            found[name] = taken.getsockname()[1]
    return found


def command(folder, out, *more):
    """Words of a suite."""
    return [sys.executable, "-m", "flowpolicy", "suite", "run", "debug", "--data", f"{folder}/data", "--out",
            f"{folder}/{out}", *more]  # fmt: skip


def wait_for(condition, what, process, seconds=1800):
    """Wait until a condition holds while a process runs."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, f"ended with {process.returncode} before {what}"
        assert time.monotonic() < until, what
        time.sleep(0.1)
    return found


def under_way(out):
    """Runs with a checkpoint and without a record."""
    found = []
    for latest in out.glob("*/*/checkpoints/LATEST"):
        run = latest.parents[1]
        if not (out / "records" / run.parent.name / f"{run.name}.json").exists():
            found.append(run)
    return found


def die_twice(folder, *more):
    """Run a suite on two nodes, kill one of them when a run is under way and the driver soon after; then again."""
    out = folder / "ray"
    with two_nodes() as (cluster, worker):
        words = command(folder, "ray", "--on", "ray", *more)
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        with (folder / "driver.log").open("w") as log:
            driver = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
            wait_for(lambda: under_way(out), "a run is under way", driver)
            cluster.remove_node(worker, allow_graceful=False)
            cluster.add_node(num_cpus=1, **_ports())
            told = wait_for(lambda: "its worker died" in Path(log.name).read_text(), "a death is told", driver)
            before = {run.name: (run / "checkpoints" / "LATEST").read_text().strip() for run in under_way(out)}
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            done = len(list(out.glob("records/*/*.json")))
            again = subprocess.run(words, env=environment, stdout=log, stderr=log, check=False)
        assert again.returncode == 0, Path(log.name).read_text()[-2000:]
    return {"a death was told": told, "under way when the driver died": before, "records when the driver died": done}


def outcomes(out):
    """Of every record: what was played, and the hash of the weights that did."""
    found = {}
    for path in sorted(out.glob("records/*/*.json")):
        record = json.loads(path.read_text())
        episodes = [{k: v for k, v in episode.items() if "us" not in k} for episode in record["episodes"]]
        found[f"{path.parent.name}/{path.stem}"] = [record["weights_sha256"], record["step"], record["plan"], episodes]
    return found


def main():
    """The whole of it: 2 arms, 2 tasks, 4 seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments, more = parser.parse_known_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    more = tuple(more or ["--seeds", "0", "1", "2", "3"])
    subprocess.run(command(arguments.out, "here", "--jobs", "1", *more), check=True, stdout=subprocess.DEVNULL)
    told = die_twice(arguments.out, *more)
    ours, theirs = outcomes(arguments.out / "ray"), outcomes(arguments.out / "here")
    differing = sorted(name for name in theirs if ours.get(name) != theirs[name])
    result = {"command": " ".join(["python", *sys.argv]), "runs": len(theirs), "differing": differing, **told}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.exit(bool(differing) or ours.keys() != theirs.keys())


if __name__ == "__main__":
    main()
