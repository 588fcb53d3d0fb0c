"""RoboMimic's own playback reaches success with the files that we generate.

robomimic 0.3.0, the last release under its own name, cannot drive robosuite 1.5; version 0.5.0 can, which
the registry has as praxis-robomimic. Its playback script imports the training code (torchvision, diffusers,
huggingface_hub) through ``file_utils``, for reading ``env_args``; an empty module stands in for that one.
"""

import json

import pytest

from ..peer_venv import peer_python, run

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(600)]

PLAYBACK = """
import json
import sys
import types
import h5py
sys.modules["robomimic.utils.file_utils"] = types.ModuleType("file_utils")
import robomimic.utils.env_utils as env_utils
import robomimic.utils.obs_utils as obs_utils
from robomimic.scripts.playback_dataset import playback_trajectory_with_env

obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["robot0_eef_pos"]}})
outcomes = []
for path in sys.argv[1:]:
    with h5py.File(path) as file:
        env_args = json.loads(file["data"].attrs["env_args"])
        env = env_utils.create_env_from_metadata(env_args, render=False, render_offscreen=False)
        for demo in file["data"].values():
            states, actions = demo["states"][()], demo["actions"][()]
            start = {"states": states[0], "model": demo.attrs["model_file"]}
            env.reset_to(start)
            before = env.is_success()["task"]
            playback_trajectory_with_env(env, start, states)
            stored = env.is_success()["task"]
            playback_trajectory_with_env(env, start, states, actions)
            outcomes.append([type(env).__name__, env.name, *map(bool, (before, stored, env.is_success()["task"]))])
print(json.dumps(outcomes))
"""


def test_stored_states_and_open_loop_actions_end_in_success(lift_file, can_file):
    peer = peer_python("robomimic-0.5", "praxis-robomimic==0.5.0")
    printed = run(str(peer), "-c", PLAYBACK, str(lift_file[0]), str(can_file[0]))
    # class, task, success at the start, after playing the stored states, after playing the actions
    outcomes = json.loads(printed.splitlines()[-1])
    assert outcomes == [["EnvRobosuite", "Lift", False, True, True]] * 3 + [
        ["EnvRobosuite", "PickPlaceCan", False, True, True]
    ]
