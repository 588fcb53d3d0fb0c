"""LeRobot's diffusion policy as a peer of ``bench latency``; nothing of it is part of flowpolicy.

Runs in a Python that the user names. Its U-Net, scheduler and sizes are LeRobot's defaults; observation, history,
chunk and action have our sizes, the chunk rounded up to what its U-Net can halve.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import Contract

PROGRAM = """
import json, sys, time

settings = json.loads(sys.argv[1])
start = time.perf_counter()


def answer(word, value):
    print(word, json.dumps(value), flush=True)


try:
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
except ImportError as error:
    answer("failed", f"lerobot cannot be imported by {sys.executable}: {error}")
    sys.exit()
torch.set_num_threads(settings["threads"])
state, rest = settings["state"], settings["environment_state"]
config = DiffusionConfig(
    n_obs_steps=settings["history"],
    horizon=settings["horizon"],
    n_action_steps=settings["action_steps"],
    input_features={
        "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(state,)),
        "observation.environment_state": PolicyFeature(type=FeatureType.ENV, shape=(rest,)),
    },
    output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(settings["action"],))},
    num_inference_steps=settings["steps"],
    noise_scheduler_type="DDPM" if settings["steps"] == 100 else "DDIM",
    device="cpu",
)
policy = DiffusionPolicy(config).eval()


def decision(rows):
    batch = {
        "observation.state": torch.randn(rows, settings["history"], state),
        "observation.environment_state": torch.randn(rows, settings["history"], rest),
    }
    return lambda: policy.diffusion.generate_actions(batch)


calls = {rows: decision(rows) for rows in settings["batches"]}
with torch.inference_mode():
    for call in calls.values():
        call()
    answer("ready", {"load_s": time.perf_counter() - start})
    for line in sys.stdin:
        if line.strip() == "memory":
            status = open("/proc/self/status").read()
            answer("memory", int(status.split("VmHWM:")[1].split()[0]))
            continue
        rows, count = map(int, line.split())
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            calls[rows]()
            seconds.append(time.perf_counter() - begin)
        answer("seconds", seconds)
"""


def lerobot_settings(contract: Contract, batches: list[int], steps: int) -> dict[str, Any]:
    """Sizes that give LeRobot's policy the same decision to make.

    It wants a robot state and an environment state: our first keys, and the last one.

    Raises:
        ConfigError: the policy sees a single number.

    """
    widths = [int(np.prod(spec.shape)) for spec in contract.spec.observation.values()]
    rest = widths[-1] if len(widths) > 1 else widths[0] // 2
    if not rest:
        raise ConfigError("LeRobot's diffusion policy needs at least two numbers to observe")
    # Of its horizon the first history - 1 actions lie in the past, and the U-Net halves it three times.
    horizon = -(-(contract.chunk + contract.history - 1) // 8) * 8
    return {
        "kind": "peer",
        "batches": batches,
        "steps": steps,
        "history": contract.history,
        "state": sum(widths) - rest,
        "environment_state": rest,
        "action": contract.spec.action.size,
        "horizon": horizon,
        "action_steps": contract.chunk,
    }
