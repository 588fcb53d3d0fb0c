import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from flowpolicy.cli import main
from flowpolicy.configs.suites import SUITES, Arm, Suite
from flowpolicy.core.errors import ConfigError
from flowpolicy.lab.slurm_place import OnSlurm
from flowpolicy.lab.suite_jobs import plan_jobs, run_jobs


def test_without_slurm_and_with_parts_of_a_core_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (job,) = plan_jobs(SUITES["debug"], tmp_path, tmp_path, tmp_path, arms=["fql"], tasks=["toy"], seeds=[0])
    with pytest.raises(ConfigError, match="no program sbatch here"):
        OnSlurm(tmp_path).carry_out([[job]], lambda job, good: None)
    OnSlurm(tmp_path).carry_out([], lambda job, good: None)  # nothing to do needs nothing
    with pytest.raises(ConfigError, match="whole numbers"):
        OnSlurm(tmp_path, gpus=0.25)


@pytest.mark.slow
def test_a_preempted_job_goes_back_into_the_queue_and_on_from_its_checkpoint(tmp_path):
    flags = ("--steps", "400", "--batch-size", "16", "--checkpoint-every", "20", "--no-tensorboard")
    suite = Suite("", {"fql": Arm("fql")}, {"toy": 6}, flags, seeds=1, episodes=2)
    with pytest.raises(SystemExit):
        main(f"data make toy --episodes 6 --workers 1 --out {tmp_path}/toy.hdf5".split())
    jobs = plan_jobs(suite, tmp_path, tmp_path / "out", tmp_path / "records")
    place, failed = OnSlurm(tmp_path / "out", scheduler="local", poll=0.2), []
    driver = threading.Thread(target=lambda: failed.extend(run_jobs(jobs, place, "suite")))
    driver.start()
    latest = jobs[0].run / "checkpoints" / "LATEST"
    while driver.is_alive() and not latest.exists():
        time.sleep(0.05)
    controller = json.loads((tmp_path / "out" / "slurm" / "jobs.json").read_text())[str(jobs[0])]
    (worker,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(worker), signal.SIGUSR2)
    driver.join()
    assert not failed
    log = jobs[0].log.read_text()
    assert json.loads(jobs[0].record.read_text())["step"] == 400
    told = [line for path in (tmp_path / "out" / "slurm").glob("*log.err") for line in path.read_text().splitlines()]
    assert any("this job is preempted" in line for line in told), log
