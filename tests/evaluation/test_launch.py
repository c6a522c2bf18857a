"""Jobs of a comparison through submitit, with its executor for this machine in Slurm's place."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
import torch
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission, JobPaths

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.evaluation import launch
from nnunetv2_plgcl.evaluation.launch import Job, launch_local, launch_slurm, wait_for
from nnunetv2_plgcl.evaluation.runs import Run


def run_of(trainer: str) -> Run:
    return Run("Dataset901_Heart", trainer, "nnUNetPlans", "2d", 0, 0)


JOBS = [Job(run_of("nnUNetTrainer"), "cpu"), Job(run_of("nnUNetTrainerPLGCL"), "cpu")]


def fail_for_ours(job: Job) -> None:
    if job.run.trainer != "nnUNetTrainer":
        raise RuntimeError("no more memory")


def test_failed_jobs_are_named_once_all_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "POLL", 0.2)
    executor = submitit.LocalExecutor(folder=tmp_path)
    wait_for([executor.submit(fail_for_ours, job) for job in JOBS[:1]], JOBS[:1])
    submitted = [executor.submit(fail_for_ours, job) for job in JOBS]
    with pytest.raises(RuntimeError, match=r"1 of 2 jobs failed.*PLGCL \(fold 0, seed 0\)") as told:
        wait_for(submitted, JOBS)
    assert str(submitted[1].paths.stderr) in str(told.value)
    assert "no more memory" in submitted[1].paths.stderr.read_text()


def test_a_job_whose_node_is_taken_away_is_requeued(tmp_path):
    """As submitit does it when Slurm sends the signal that it asked for."""
    requeued = []
    slurm = SimpleNamespace(global_rank=0, _requeue=requeued.append)
    paths = JobPaths(tmp_path, "17")
    job = DelayedSubmission(launch.Requeued(), JOBS[0])
    job.set_timeout(5, launch.REQUEUES)
    with pytest.raises(SystemExit):
        SignalHandler(slurm, paths, job).checkpoint_and_try_requeue(signal.SIGTERM)
    assert requeued == [launch.REQUEUES - 1]
    again = DelayedSubmission.load(paths.submitted_pickle)
    assert isinstance(again.function, launch.Requeued) and again.args == (JOBS[0],)


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="Slurm is there")
def test_a_machine_without_slurm_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="Slurm cannot be used here: .*srun"):
        launch_slurm(JOBS, tmp_path, {})


@pytest.fixture
def sbatch(tmp_path, monkeypatch) -> Path:
    """An sbatch that keeps the file it was given; submitit only looks whether srun is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    kept = tmp_path / "submission.sh"
    contents = {"srun": "", "sbatch": f'cp "$1" {kept}\necho Submitted batch job 17\n'}
    for name, lines in contents.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return kept


def test_sbatch_gets_the_options(tmp_path, monkeypatch, sbatch):
    monkeypatch.setattr(launch, "wait_for", lambda submitted, jobs: None)
    on_gpu = [Job(job.run, "cuda") for job in JOBS]
    launch_slurm(on_gpu, tmp_path, {"partition": "gpu", "cpus-per-task": "8"})
    script = sbatch.read_text()
    for line in ("--partition=gpu", "--cpus-per-task=8", "--time=2-00:00:00",
                 "--gpus-per-node=1", "--array=0-1%2"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    launch_slurm(on_gpu, tmp_path, {"time": "60", "gpus-per-node": "a100:1"})
    script = sbatch.read_text()
    assert "#SBATCH --time=60\n" in script and "--gpus-per-node=a100:1\n" in script


def test_a_failing_training_shows_the_end_of_its_log(tmp_path, monkeypatch):
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path))
    with pytest.raises(RuntimeError, match="ended with status") as told:
        launch_local(JOBS[:1], tmp_path)
    assert "nnUNetPlans.json" in str(told.value)
    assert (tmp_path / f"{JOBS[0].run.name}.txt").is_file()


def test_jobs_run_side_by_side_where_asked(tmp_path, monkeypatch):
    met = threading.Barrier(2, timeout=20)  # both must be running to pass
    monkeypatch.setattr(launch, "run_logged", lambda *_: met.wait())
    launch_local(JOBS, tmp_path, at_once=2)


def test_after_a_failure_no_other_job_begins(tmp_path, monkeypatch):
    begun = []

    def fail(command, environment, log):
        begun.append(log)
        raise RuntimeError("no more memory")

    monkeypatch.setattr(launch, "run_logged", fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        launch_local(JOBS, tmp_path)
    assert len(begun) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_stops_the_demo_too(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        commands.demo(["--device", "cuda", "-o", str(tmp_path / "demo")])
    assert "finds no cuda device" in str(stopped.value.code)
    assert not (tmp_path / "demo").exists()


def test_copies_of_plans_are_never_overwritten(prepared):
    copy = prepared.name, "nnUNetPlans", "Slow", "2d_tiny", {"ema_decay": 0.9999}
    launch.write_plans_copy(*copy)
    file = prepared.preprocessed / "Slow.json"
    plans = json.loads(file.read_text())
    assert plans["plans_name"] == "Slow"
    assert plans["configurations"]["2d_tiny"]["plgcl"] == {"ema_decay": 0.9999}
    launch.write_plans_copy(*copy)  # the same again is fine
    launch.write_plans_copy(prepared.name, "Slow", "Slow_seed3", "2d_tiny", {"seed": 3})
    of_seed = json.loads((prepared.preprocessed / "Slow_seed3.json").read_text())
    assert of_seed["configurations"]["2d_tiny"]["plgcl"] == {"ema_decay": 0.9999, "seed": 3}
    plans["configurations"]["2d_tiny"]["batch_size"] = 3
    file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match='is not nnUNetPlans.json with {"ema_decay": 0.9999} in'):
        launch.write_plans_copy(*copy)
    assert json.loads(file.read_text()) == plans
