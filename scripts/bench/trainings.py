"""One training of the benchmark: what it is given, where it and its scores lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

from bench.prepare import Fold
from nnunetv2_plgcl.datasets.files import nnunet_folder, read_json
from nnunetv2_plgcl.datasets.raw import images_by_case
from nnunetv2_plgcl.evaluation.launch import Job, is_predicted, launch_one
from nnunetv2_plgcl.evaluation.runs import Run

SUFFIX = "_benchmark"  # of the classes that train


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        run: of the trainer's class for the benchmark.
        fold: that it is trained and validated on.
        dataset, settings, iterations: as asked for.
        test: folders of other images and of their labels; None for the fold's validation cases.
    """

    run: Run
    fold: Fold
    dataset: str
    settings: dict[str, Any]
    iterations: int
    test: tuple[Path, Path] | None = None

    @property
    def trainer(self) -> str:
        """Its name without the benchmark's suffix."""
        return self.run.trainer.removesuffix(SUFFIX)

    @property
    def _cases(self) -> str:
        """Short name of the cases to evaluate; another one for every folder of test images."""
        if self.test is None:
            return self.fold.split
        images = self.test[0].resolve()
        return f"{images.name}_{sha1(str(images).encode()).hexdigest()[:8]}"

    @property
    def predictions(self) -> Path:
        if self.test is None:
            return self.run.validation
        return self.folder / "predictions" / self._cases / f"{self.iterations}__{self.run.name}"

    @property
    def folder(self) -> Path:
        """Of all trainings with this dataset."""
        return nnunet_folder("nnUNet_results").parent

    @property
    def row(self) -> Path:
        """File of its row, without ending."""
        return self.folder / "rows" / f"{self.iterations}__{self._cases}__{self.run.name}"

    def __str__(self) -> str:
        split = f"{self.fold.split}, {self.fold.labelled} labelled"
        return f"{self.trainer} ({self.dataset}, {split}, seed {self.run.seed})"

    def job(self, device: str) -> Job | None:
        """What is still to be trained or predicted; None where nothing is."""
        if self.test is None:
            return None if self.run.is_finished() else Job(self.run, device)
        images, predictions = self.test[0], self.predictions
        ending = read_json(self.run.model_folder / "dataset.json")["file_ending"]
        if is_predicted(self.run, images_by_case(images, ending), predictions):
            return None
        return Job(self.run, device, str(images), str(predictions))


def complete(
    trainings: Sequence[Training],
    device: str,
    at_once: int,
    logs: Path,
    when_done: Callable[[Training], None],
) -> None:
    """Train and predict what is missing, ``at_once`` side by side; a failure stops no other.

    Args:
        trainings: in the order in which they begin.
        device: to train and predict on.
        at_once: processes.
        logs: folder for what they print.
        when_done: called with each in this process, while others go on.

    Raises:
        RuntimeError: trainings that failed, with the end of the first one's log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    failures = []

    def work(training: Training) -> None:
        job = training.job(device)
        if job is not None:
            print(f"Begun: {training}", flush=True)
            launch_one(job, logs)

    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(work, training): training for training in trainings}
        for future in as_completed(futures):
            training = futures[future]
            try:
                future.result()
                when_done(training)
            except (ValueError, OSError, RuntimeError) as error:
                print(f"Failed: {training}", flush=True)
                failures.append((training, error))
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        first, error = failures[0]
        raise RuntimeError(
            f"{len(failures)} of {len(trainings)} failed: "
            f"{', '.join(str(training) for training, _ in failures)}. The others are done; run "
            f"again to go on. {first}: {error}"
        )
