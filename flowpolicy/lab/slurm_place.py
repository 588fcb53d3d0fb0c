"""Suites on SLURM, through submitit: an array of jobs, one for every run or company of runs.

A job that is preempted, or whose time ends, is told so two minutes before: it goes back into the queue and goes on from
its newest checkpoint. The driver only waits; killed and started again it finds the jobs that it has submitted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import ConfigError, MissingExtraError
from flowpolicy.core.files import read_object, write_json
from flowpolicy.lab.suite_jobs import Company, Finished, carry_out, job_from

JOBS = "jobs.json"
"""File in OUT/slurm: run -> number of the job that it was last submitted as."""
_ARRAY = 1_000
"""Jobs in an array; SLURM's own limit is 1,001 unless a cluster has changed it."""
_AHEAD = 120
"""Seconds before the end of its time that a job is told."""
_ALIVE = ("PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "COMPLETING", "SUSPENDED", "READY")


@dataclass(frozen=True)
class OnSlurm:
    """The SLURM cluster whose ``sbatch`` is found here."""

    out: Path
    """The suite's folder, which every node must see under the same path."""
    partition: str = ""
    hours: float = 4.0
    """Of a job, before it goes back into the queue."""
    cpus: float = 1.0
    gpus: float = 0.0
    at_once: int | None = None
    """Jobs that run side by side at most."""
    scheduler: str = "slurm"
    """Or ``local``: processes of this machine, by submitit's own executor for tests."""
    poll: float = 5.0
    """Seconds between two looks at the jobs."""

    def __post_init__(self) -> None:
        if any(number != int(number) for number in (self.cpus, self.gpus)):
            raise ConfigError(
                f"{self.cpus:g} cores and {self.gpus:g} GPUs for a run on SLURM",
                expected="whole numbers; fractions share a GPU on Ray alone",
            )

    def carry_out(self, companies: Sequence[Company], finished: Finished) -> None:
        """As jobs of one array, or of several where there are more than a thousand."""
        if not companies:
            return
        left = self._submitted(companies)
        while left:
            time.sleep(self.poll)
            for job, company in [each for each in left if self._over(each[0])]:
                left.remove((job, company))
                for one in company:
                    finished(one, one.record.exists())

    def _submitted(self, companies: Sequence[Company]) -> list[tuple[Any, Company]]:
        """(job, its company): those that are under way since an earlier call, and new ones."""
        try:
            import submitit
        except ImportError as error:
            raise MissingExtraError("submitit", "slurm") from error
        if self.scheduler == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError(
                "--on slurm: there is no program sbatch here",
                expected="a login node of a SLURM cluster",
                fix="type the command there; or --on local, --on ray",
            )
        folder = self.out / "slurm"
        known = read_object(folder / JOBS) if (folder / JOBS).exists() else {}
        under_way, new = [], []
        for company in companies:
            job = self._attached(submitit, folder, known.get(str(company[0]), ""))
            under_way.extend([] if job is None else [(job, company)])
            new.extend([company] if job is None else [])
        executor = self._executor(submitit, folder)
        for first in range(0, len(new), _ARRAY):
            part = new[first : first + _ARRAY]
            orders = [{"here": str(Path.cwd()), "jobs": [job.to_json() for job in company]} for company in part]
            jobs = executor.map_array(RunOfArray(), orders)
            under_way += zip(jobs, part, strict=True)
            known |= {str(company[0]): str(job.job_id) for job, company in zip(jobs, part, strict=True)}
            write_json(folder / JOBS, known)
        return under_way

    def _executor(self, submitit: Any, folder: Path) -> Any:
        # A time that ends is no fault here, however often.
        timeouts = {f"{self.scheduler}_max_num_timeout": 10_000}
        executor = submitit.AutoExecutor(folder=folder, cluster=self.scheduler, **timeouts)
        more: dict[str, Any] = {"slurm_signal_delay_s": _AHEAD, "slurm_job_name": "flowpolicy"}
        more |= {"slurm_partition": self.partition} if self.partition else {}
        more |= {"slurm_array_parallelism": self.at_once or _ARRAY}
        more |= {"gpus_per_node": int(self.gpus)} if self.gpus else {}
        executor.update_parameters(timeout_min=max(1, round(60 * self.hours)), cpus_per_task=int(self.cpus), **more)
        return executor

    def _attached(self, submitit: Any, folder: Path, number: str) -> Any | None:
        """The job of this number, if it is still in the queue or at work."""
        if not number or self.scheduler != "slurm":
            return None
        job = submitit.SlurmJob(folder=folder, job_id=number)
        return job if job.watcher.get_state(number, mode="force").upper().split()[0] in _ALIVE else None

    def _over(self, job: Any) -> bool:
        return bool(job.done())


class RunOfArray:
    """What a job does; submitit asks it for what is to be submitted again when a job has to stop."""

    def __call__(self, order: dict[str, Any]) -> None:
        """Train and evaluate, or go on with, the runs of an order; what came of it is in the files."""
        os.chdir(order["here"])  # as where the command was typed: paths may be relative
        carry_out([job_from(value) for value in order["jobs"]], lambda job, good: None)

    def checkpoint(self, order: dict[str, Any]) -> Any:
        """The same again: it goes on from the newest checkpoint. The process that trains ends with this one."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)
