"""Processor time of robosuite's control step: robosuite's own, the compiled one, and through worker processes.

Everything is set against the bare physics of the same model on the same path: MuJoCo's substeps under the controls that
were recorded from it, and nothing else. Not wall time: other programs on the machine would count.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from typing_extensions import override

from flowpolicy.bench.timing import spread
from flowpolicy.core.seed import numpy_generator
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.robosuite_step import CompiledStep, run_physics
from flowpolicy.envs.vector import ProcessVecEnv


def bench_rollout(
    *,
    tasks: Sequence[str] = ("Lift", "PickPlaceCan", "NutAssemblySquare"),
    num_envs: int = 4,
    steps: int = 20,
    rounds: int = 10,
) -> dict[str, Any]:
    """Step robosuite in four ways, in turn.

    Args:
        tasks: of robosuite.
        num_envs: slots of the vector environment.
        steps: control steps per round, the same ones in every round.
        rounds: how many.

    Returns:
        ``load_average`` of the machine at the end (above ``cores``, this ran beside other work), and per task:
        ``microseconds`` of processor time of a control step, and ``of_physics``, the part of it that bare
        physics takes, each by name: 'physics', 'compiled', 'robosuite' (its own step), 'vector' (the compiled one
        through worker processes, both sides of the pipe). ``compiled_over_robosuite`` is how many times as many steps
        it makes.

    """
    measured = {task: _bench_task(task, num_envs, steps, rounds) for task in tasks}
    return {"num_envs": num_envs, "load_average": os.getloadavg()[0], "cores": os.cpu_count(), "tasks": measured}


def _bench_task(task: str, num_envs: int, steps: int, rounds: int) -> dict[str, Any]:
    config = RobosuiteConfig()
    create = functools.partial(RobosuiteEnv, config.env_args() | {"env_name": task}, config.obs_keys)
    course, own = _Course(create(), steps), create(compiled=False)
    action, slots = np.stack([course.actions] * num_envs, axis=1), range(num_envs)
    spent: dict[str, list[float]] = {name: [] for name in ("physics", "compiled", "robosuite", "vector")}
    own.reset(0)
    own.step(course.actions[0])
    with ProcessVecEnv(config.spec(), create, num_envs) as vector:
        clock = functools.partial(_seconds_of, [worker.pid for worker in vector.workers])
        for _ in range(rounds):
            vector.reset(list(slots), slots)
            spent["physics"].append(course.time_physics() / steps)
            spent["compiled"].append(course.time_steps(course.env) / steps)
            spent["robosuite"].append(course.time_steps(own) / steps)
            spent["vector"].append(
                _timed(lambda: [vector.step(row, slots) for row in action], clock) / steps / num_envs
            )
    course.env.close()
    own.close()
    seconds = {name: np.array(values) for name, values in spent.items()}
    return {
        "microseconds": {name: spread(1e6 * values) for name, values in seconds.items()},
        "of_physics": {name: spread(seconds["physics"] / seconds[name]) for name in spent if name != "physics"},
        "compiled_over_robosuite": spread(seconds["robosuite"] / seconds["compiled"]),
    }


class _Course:
    """Control steps under random actions from one state, and the controls of their substeps.

    Args:
        env: which is stepped.
        steps: how many.

    """

    def __init__(self, env: RobosuiteEnv, steps: int) -> None:
        import mujoco

        self.env, self._kind = env, mujoco.mjtState.mjSTATE_INTEGRATION
        self.actions = numpy_generator(0, "bench", "rollout").uniform(-0.3, 0.3, size=(steps, 7))
        env.reset(0)
        env.step(self.actions[0])
        self._model, self._command = (
            env.sim_env.sim.model._model,
            env.sim_env.robots[0].gripper["right"].current_action.copy(),
        )
        self._start = np.empty(mujoco.mj_stateSize(self._model, self._kind))
        mujoco.mj_getState(self._model, env.sim_env.sim.data._data, self._start, self._kind)
        recording = _Recording(env.sim_env)
        for action in self.actions:
            recording(action)
        self._controls = np.array(recording.controls).reshape(steps, -1, self._model.nu)
        self._bare = mujoco.MjData(self._model)

    def time_steps(self, env: RobosuiteEnv) -> float:
        """Seconds of processor time that the steps take an environment of the same model."""
        self._rewind(env.sim_env.sim.data._data)
        env.sim_env.robots[0].gripper["right"].current_action = self._command.copy()
        return _timed(lambda: [env.step(action) for action in self.actions])

    def time_physics(self) -> float:
        """Seconds of processor time of the substeps alone."""
        self._rewind(self._bare)

        def run() -> None:
            for controls in self._controls:
                run_physics(self._model, self._bare, controls)

        return _timed(run)

    def _rewind(self, data: Any) -> None:
        import mujoco

        mujoco.mj_setState(self._model, data, self._start, self._kind)


class _Recording(CompiledStep):
    """A compiled step that stops after every substep and keeps its controls."""

    def __init__(self, sim_env: Any) -> None:
        super().__init__(sim_env)
        self.controls: list[np.ndarray] = []

    @override
    def _run(self, substeps: int, action: int | None = None, turn: int | None = None) -> int:
        done = 0
        while done < substeps and super()._run(1, *((None, None) if done else (action, turn))):
            self.controls.append(self._env.sim.data.ctrl.copy())
            done += 1
        return done


def _timed(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    work()
    return clock() - start


def _seconds_of(pids: Sequence[int]) -> float:
    """Processor time of this process and others so far."""
    return time.process_time() + sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # Linux's clock of a process


def rollout_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_rollout` for the console."""
    title = "processor time of a control step, and bare physics as a part of it: median and quartiles"
    caption = f"load of {result['load_average']:.1f} on {result['cores']} cores"
    table = Table("", "us", "physics / step", title=title, caption=caption)
    names = {
        "physics": "physics alone",
        "compiled": "compiled step",
        "robosuite": "robosuite's own step",
        "vector": f"compiled, {result['num_envs']} slots in worker processes",
    }
    for task, found in result["tasks"].items():
        for name, called in names.items():
            time_, part = found["microseconds"][name], found["of_physics"].get(name)
            table.add_row(f"{task}: {called}", _quartiles(time_, ".0f"), _quartiles(part, ".2f") if part else "")
        times = _quartiles(found["compiled_over_robosuite"], ".1f")
        table.add_row(f"{task}: robosuite's own / compiled", times, "", end_section=True)
    return table


def _quartiles(value: dict[str, float], form: str) -> str:
    return f"{value['median']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"
