"""What runs in the peer's own Python: trains its agent on transitions in an npz, or acts. flowpolicy never imports it.

``python peer_program.py SETTINGS.json train|act`` in the peer's folder. All that the peer prints goes to standard
error. Standard output holds lines ``word JSON``: ``at`` (updates so far), ``done`` or ``ready``, and ``lacks`` where
something cannot be imported. Acting, it then reads frames of a seed (int64) and an observation (float32) from standard
input, and writes an action (float32) for each. Parameters are stored as an npz of arrays, read without pickle.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

_CLIP = 1e-5  # how far from the ends of [-1, 1] the peers' own loaders keep actions


def _main() -> None:
    if sys.platform == "linux":  # whoever started it may be killed: then nobody wants this any more
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        settings = json.load(file)
    sys.path[0] = os.getcwd()  # noqa: PTH109
    try:
        with _few_threads(settings["threads"]):
            peer = _Peer(settings, answers)
        peer.do(sys.argv[2])
    except ImportError as error:
        _say(answers, "lacks", str(error))
        raise


@contextlib.contextmanager
def _few_threads(count: int) -> Iterator[None]:
    """JAX begins with a thread per core that it sees; afterwards they may run on every core."""
    if sys.platform != "linux":
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:count])
    yield
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
        with contextlib.suppress(ProcessLookupError):  # has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def _say(answers: Any, word: str, value: Any) -> None:
    answers.write(f"{word} {json.dumps(value)}\n".encode())
    answers.flush()


class _Peer:
    def __init__(self, settings: dict[str, Any], answers: Any) -> None:
        import jax
        import numpy as np

        self.jax, self.np, self.settings, self.answers = jax, np, settings, answers
        place = importlib.import_module(settings["module"])
        config = place.get_config()
        for name, value in settings["config"].items():
            config[name] = tuple(value) if isinstance(value, list) else value
        row = {name: np.zeros((1, settings[name]), np.float32) for name in ("observations", "actions")}
        agent = getattr(place, settings["agent"])
        self.agent = agent.create(settings["seed"], row["observations"], row["actions"], config)

    def do(self, what: str) -> None:
        if what == "train":
            self.train()
        else:
            self.act()

    def train(self) -> None:
        np, settings = self.np, self.settings
        Dataset = importlib.import_module("utils.datasets").Dataset
        with np.load(settings["transitions"], allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        columns["actions"] = np.clip(columns["actions"], -1 + _CLIP, 1 - _CLIP)
        dataset = Dataset.create(**columns)
        np.random.seed(settings["seed"])  # what its Dataset draws from
        agent, steps, begun = self.agent, settings["steps"], time.process_time()
        for step in range(1, steps + 1):
            agent, info = agent.update(dataset.sample(settings["batch_size"]))
            if step % max(1, steps // 50) == 0:
                self.jax.block_until_ready(info)
                _say(self.answers, "at", step)
        leaves = [np.asarray(leaf) for leaf in self.jax.tree_util.tree_leaves(agent.network.params)]
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise SystemExit("its parameters are not finite")
        with open(settings["parameters"], "wb") as file:  # noqa: PTH123
            np.savez(file, **{f"leaf{place:04d}": leaf for place, leaf in enumerate(leaves)})
        told = {"process_seconds": time.process_time() - begun, "versions": _versions()}
        told["parameters"] = int(sum(leaf.size for leaf in leaves))
        _say(self.answers, "done", told)

    def act(self) -> None:
        np, jax, settings = self.np, self.jax, self.settings
        old, tree = jax.tree_util.tree_flatten(self.agent.network.params)
        with np.load(settings["parameters"], allow_pickle=False) as file:
            leaves = [file[f"leaf{place:04d}"] for place in range(len(old))]
        params = jax.tree_util.tree_unflatten(tree, leaves)
        agent = self.agent.replace(network=self.agent.network.replace(params=params))
        size = 8 + 4 * settings["observations"]
        self.decide(agent, bytes(size))  # compiles
        _say(self.answers, "ready", {})
        while len(frame := sys.stdin.buffer.read(size)) == size:
            self.answers.write(self.decide(agent, frame))
            self.answers.flush()

    def decide(self, agent: Any, frame: bytes) -> bytes:
        seed = int.from_bytes(frame[:8], "little")
        obs = self.np.frombuffer(frame, self.np.float32, offset=8)
        action = agent.sample_actions(observations=obs, seed=self.jax.random.PRNGKey(seed))
        return self.np.asarray(action, self.np.float32).tobytes()


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in ("jax", "jaxlib", "flax", "optax", "distrax", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    _main()
