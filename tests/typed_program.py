"""What a user types, checked as strictly as mypy can: `make types` reads it beside the package."""

import numpy as np
from numpy.typing import NDArray

import flowpolicy as fp


def train_and_look(file: str, out: str) -> float:
    data: fp.DataConfig = fp.DataConfig(path=file)
    experiment: fp.Experiment = fp.presets["dm1-lift"].with_(data=data, steps=100)
    run: fp.Run = fp.train(experiment, out=out)
    result = fp.evaluate(run, episodes=20, seed=0)
    print(fp.load_dataset(file), result, run.step, run.contract.spec.env_id)
    return result.success.mean if result.success else result.return_.mean


def act_once(run: str) -> NDArray[np.float32]:
    policy: fp.Policy = fp.load_policy(run)
    env, session = fp.make_env(run), fp.Session(policy, seed=0)
    obs, _ = env.reset(seed=0)
    obs, reward, terminated, truncated, _ = env.step(session.act(obs))
    over: bool = terminated or truncated
    print(reward, over)
    try:
        return policy.act(obs, seed=0)
    except fp.FlowPolicyError as error:
        raise SystemExit(str(error)) from error
