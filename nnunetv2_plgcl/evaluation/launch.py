"""Train and predict what a comparison lacks: on this machine, or through Slurm.

Each training is nnU-Net's own command in a process of its own; only its record is ours.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_plgcl.datasets.description import read_dataset, read_plans
from nnunetv2_plgcl.datasets.files import (
    nnunet_folder,
    read_json,
    states_of,
    write_json,
)
from nnunetv2_plgcl.datasets.raw import images_by_case
from nnunetv2_plgcl.evaluation.folds import read_fold
from nnunetv2_plgcl.evaluation.runs import FINAL, LABELLED, PEAK_MEMORY, RECORD, Run, read_record
from nnunetv2_plgcl.model_files import load_model
from nnunetv2_plgcl.record import conditions
from nnunetv2_plgcl.semisupervised.state import newest
from nnunetv2_plgcl.settings import PLANS_KEY
from nnunetv2_plgcl.workers import run_logged

ORIGIN = "plgcl_origin.json"  # beside predictions: of which model and images
POLL = 10  # seconds between two looks at the scheduler
REQUEUES = 100  # of a job whose time ran out or whose node was taken away
SLURM_DEFAULTS = {"time": "2-00:00:00"}  # submitit's own are five minutes


@dataclass(frozen=True)
class Job:
    """What one process does: train a run if it is not finished, predict if images are named.

    Attributes:
        run: to train.
        device: cuda, cpu or mps.
        images, predictions: folders of test images and of their predictions, or None.
    """

    run: Run
    device: str
    images: str | None = None
    predictions: str | None = None


def require_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: no such device here.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not there.get(device):
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise ValueError(
            f"PyTorch finds no {device} device on this machine, only {found}. "
            f"Name one with -device."
        )


def write_plans_copy(
    dataset: str, plans_name: str, copy_name: str, configuration: str, settings: Mapping[str, Any]
) -> None:
    """Write ``plans_copy`` beside the plans of a dataset, where it is not yet there.

    Args:
        dataset: full name.
        plans_name: of the original.
        copy_name, configuration, settings: see ``plans_copy``.

    Raises:
        ValueError: a plans file of that name with which something else would be trained.
    """
    original, _ = read_plans(dataset, plans_name, configuration)
    plans = plans_copy(original, copy_name, configuration, settings)
    file = nnunet_folder("nnUNet_preprocessed") / dataset / f"{copy_name}.json"
    if not file.is_file():
        write_json(file, plans)
        return
    there, _ = read_plans(dataset, copy_name, configuration)
    if _trained_with(there, configuration) != _trained_with(plans, configuration):
        raise ValueError(
            f"{file} is not {plans_name}.json with {json.dumps(settings)} in {configuration}. "
            f"Remove or rename it."
        )


def plans_copy(
    plans: Mapping[str, Any], copy_name: str, configuration: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Plans under another name, with settings of ours in one configuration.

    Args:
        plans: content of the original.
        copy_name: of the copy.
        configuration: which gets the settings, beside those that it has.
        settings: values of the trainer's settings by name.
    """
    copied = copy.deepcopy({**plans, "plans_name": copy_name})
    together = {**_settings_in(copied, configuration), **settings}
    copied["configurations"][configuration][PLANS_KEY] = together
    return copied


def _trained_with(plans: dict, configuration: str) -> tuple[dict, dict]:
    return conditions(plans, configuration), _settings_in(plans, configuration)


def _settings_in(plans: dict, configuration: str) -> dict:
    """Those of the configuration, which may have them from another that it inherits."""
    resolved = PlansManager(plans).get_configuration(configuration).configuration
    return dict(resolved.get(PLANS_KEY, {}))


def execute(job: Job) -> None:
    """Train if needed, predict if asked. Runs in a process of its own."""
    if not job.run.is_finished():
        _train(job)
    if job.images is not None and job.predictions is not None:
        _predict(job, job.images, job.predictions)


def _train(job: Job) -> None:
    from nnunetv2.run.run_training import run_training_entry

    run = job.run
    begins = newest(run.folder) is None
    if begins:  # else the split may be another one than at the beginning
        plans, _ = read_plans(run.dataset, run.plans_name, run.configuration)
        _note(run, {LABELLED: read_fold(plans, run.configuration, run.fold).labelled})
    sys.argv = ["nnUNetv2_train", run.dataset, run.configuration, str(run.fold), "-tr", run.trainer,
                "-p", run.plans_name, "-device", job.device, "--c"]  # fmt: skip
    trains = not (run.folder / FINAL).is_file()
    run_training_entry()  # --c also begins a training
    if trains:
        peaks = peak_memory(job.device), read_record(run).get(PEAK_MEMORY)
        _note(run, {PEAK_MEMORY: max((peak for peak in peaks if peak), default=None)})


def _note(run: Run, entries: dict[str, Any]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / RECORD, {**read_record(run), **entries})


def peak_memory(device: str) -> int | None:
    """Bytes of GPU memory that tensors took at most; on a CPU the largest resident size of this
    process, None where the system does not tell."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def is_predicted(run: Run, images: Mapping[str, Sequence[Path]], predictions: Path) -> bool:
    """Whether the folder holds what the finished run predicts for these images.

    Args:
        run: maybe finished.
        images: files of each case.
        predictions: folder.
    """
    try:
        noted = read_json(predictions / ORIGIN)
    except (OSError, ValueError):
        return False
    return bool(noted == _origin(run, images))


def _origin(run: Run, images: Mapping[str, Sequence[Path]]) -> dict[str, list]:
    """Changes where the model was trained again, or an image was replaced."""
    files = [run.folder / FINAL, *(file for case in sorted(images) for file in images[case])]
    return {"cases": sorted(images), "files": states_of(file.resolve() for file in files)}


def _predict(job: Job, images: str, predictions: str) -> None:
    """As nnUNetv2_predict does by default, in no more processes than nnU-Net is to have."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    ending = read_dataset(job.run.model_folder / "dataset.json")["file_ending"]
    # by name, not the folder, where nnU-Net would take hidden files for images too
    cases = images_by_case(Path(images), ending)
    origin = _origin(job.run, cases)
    shutil.rmtree(predictions, ignore_errors=True)  # of another model, or not all
    predictor = nnUNetPredictor(device=torch.device(job.device))
    load_model(predictor, job.run.model_folder, job.run.fold, FINAL)
    processes = min(2, default_num_processes)
    predictor.predict_from_files(
        [[str(file) for file in files] for files in cases.values()],
        [str(Path(predictions) / case) for case in cases],
        num_processes_preprocessing=processes,
        num_processes_segmentation_export=processes,
    )
    write_json(Path(predictions) / ORIGIN, origin)


def launch_one(job: Job, logs: Path) -> None:
    """Here, in a process of its own with a log file.

    Raises:
        RuntimeError: it failed; with the end of its log.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(job))]
    run_logged(command, os.environ, logs / f"{job.run.name}.txt")


def launch_local(jobs: Sequence[Job], logs: Path, at_once: int = 1) -> None:
    """Here, each in a process of its own with a log file, ``at_once`` of them side by side.

    Raises:
        RuntimeError: a job failed; with the end of its log. Those beside it are finished first,
            no other is begun.
    """
    failed = threading.Event()

    def run(job: Job) -> None:
        if failed.is_set():
            return
        try:
            launch_one(job, logs)
        except BaseException:
            failed.set()
            raise

    bar = tqdm(total=len(jobs), desc="trainings", unit="run", disable=None)
    with bar, ThreadPoolExecutor(at_once) as pool:
        for finished in as_completed([pool.submit(run, job) for job in jobs]):
            finished.result()
            bar.update()


class Requeued:
    """``execute`` for submitit, which requeues it when Slurm takes the node away: our trainers
    write the beginning of the epoch in progress, and the job goes on with nnU-Net's ``--c``."""

    def __call__(self, job: Job) -> None:
        execute(job)

    def checkpoint(self, job: Job) -> Any:
        """What submitit submits again. Called in its signal handler, after which it exits."""
        from submitit.helpers import DelayedSubmission

        from nnunetv2_plgcl.semisupervised.resume import write_resume_point

        write_resume_point()
        return DelayedSubmission(self, job)


def launch_slurm(jobs: Sequence[Job], logs: Path, options: Mapping[str, str]) -> None:
    """As an array of Slurm jobs through submitit; waits for all of them.

    Args:
        jobs: to submit.
        logs: folder for what Slurm and the jobs write; every node must reach it.
        options: for sbatch, e.g. partition or time; they win over ``SLURM_DEFAULTS``.

    Raises:
        RuntimeError: submitit or Slurm is missing, or jobs failed; the others are done.
    """
    try:
        import submitit
    except ImportError:
        raise RuntimeError('--launcher slurm needs submitit: pip install "submitit>=1.5"') from None
    try:
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=REQUEUES)
    except RuntimeError as error:
        raise RuntimeError(f"Slurm cannot be used here: {error}") from None
    gpu = {"gpus_per_node": "1"} if any(job.device == "cuda" for job in jobs) else {}
    given = {name.replace("-", "_"): value for name, value in options.items()}
    executor.update_parameters(
        job_name="plgcl_compare", additional_parameters={**SLURM_DEFAULTS, **gpu, **given}
    )
    wait_for(executor.map_array(Requeued(), jobs), jobs)


def wait_for(submitted: Sequence[Any], jobs: Sequence[Job]) -> None:
    """Wait for jobs of submitit.

    Raises:
        RuntimeError: which of them failed, and where the first one's log is.
    """
    done = 0
    with tqdm(total=len(jobs), desc="trainings", unit="run", disable=None) as bar:
        while done < len(jobs):
            time.sleep(POLL)
            now = sum(job.done() for job in submitted)
            bar.update(now - done)
            done = now
    failed = [(job, one) for job, one in zip(jobs, submitted, strict=True) if one.exception()]
    if failed:
        first, of_submitit = failed[0]
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} jobs failed, the others are done. First: {first.run}, "
            f"see {of_submitit.paths.stderr}. Run again to go on."
        )


if __name__ == "__main__":
    content = json.loads(sys.argv[1])
    execute(Job(**{**content, "run": Run(**content["run"])}))
