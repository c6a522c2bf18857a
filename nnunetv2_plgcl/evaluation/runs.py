"""One training of a comparison: where it lies, what it was given, what it cost. Source: ours."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_plgcl.datasets.description import read_plans_file
from nnunetv2_plgcl.datasets.files import nnunet_folder, read_object
from nnunetv2_plgcl.model_files import read_model_file
from nnunetv2_plgcl.record import conditions

FINAL = "checkpoint_final.pth"
RECORD = "plgcl_run.json"
LABELLED = "labelled_cases"  # in the record of ``launch``
PEAK_MEMORY = "peak_memory_bytes"
LENGTH = ("num_epochs", "num_iterations_per_epoch")  # attributes of a trainer


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        dataset: full name.
        trainer, configuration, fold: as for ``nnUNetv2_train``.
        plans: name of the plans of the first repetition.
        seed: number of the repetition. Repetitions from 1 on have plans of their own, in which
            it is the seed.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: int | str
    seed: int

    @property
    def plans_name(self) -> str:
        return self.plans if self.seed == 0 else f"{self.plans}_seed{self.seed}"

    @property
    def model_folder(self) -> Path:
        name = f"{self.trainer}__{self.plans_name}__{self.configuration}"
        return nnunet_folder("nnUNet_results") / self.dataset / name

    @property
    def folder(self) -> Path:
        return self.model_folder / f"fold_{self.fold}"

    @property
    def preprocessed(self) -> Path:
        """Labelled cases of its configuration."""
        identifier = compared_plans(self)["data_identifier"]
        return nnunet_folder("nnUNet_preprocessed") / self.dataset / identifier

    @property
    def validation(self) -> Path:
        """Predictions of the final validation."""
        return self.folder / "validation"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.trainer}__{self.plans_name}__{self.configuration}__fold_{self.fold}"

    def __str__(self) -> str:
        return f"{self.trainer} (fold {self.fold}, seed {self.seed})"

    def is_finished(self) -> bool:
        """Trained, and its final validation done."""
        return (self.folder / FINAL).is_file() and (self.validation / "summary.json").is_file()


@dataclass(frozen=True)
class Course:
    """What a training logged, from its final checkpoint.

    Attributes:
        online_dice: mean foreground Dice of the online validation, one value an epoch.
        seconds: training time, its online validation included.
        iterations: in all.
        batch_size: of the plans.
        peak_memory: bytes of GPU memory that tensors took at most, on a CPU the largest resident
            size of the training process; None where the training was not started by us.
    """

    online_dice: tuple[float, ...]
    seconds: float
    iterations: int
    batch_size: int
    peak_memory: int | None


def require_finished(runs: Sequence[Run]) -> None:
    """Refuse trainings that are missing or did not finish.

    Raises:
        FileNotFoundError: with the command that trains the first of them.
    """
    missing = [run for run in runs if not run.is_finished()]
    if missing:
        first = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{first}{more} is not finished: {first.folder} lacks {FINAL} or "
            f"validation/summary.json. Add --run, or: nnUNetv2_train {first.dataset} "
            f"{first.configuration} {first.fold} -tr {first.trainer} -p {first.plans_name} --c"
        )


def read_record(run: Run) -> dict[str, Any]:
    """What ``launch`` noted beside a training; empty where another started it.

    Raises:
        ValueError: the file is damaged.
    """
    file = run.folder / RECORD
    return read_object(file) if file.is_file() else {}


def start_of_training(run: Run) -> tuple[datetime, int, bool]:
    """When the newest log of a training from its first epoch on begins, how many training cases
    nnU-Net writes into it, and whether that training wrote the split."""
    for file in sorted(run.folder.glob("training_log_*.txt"), reverse=True):
        text = file.read_text()
        number = re.search(r"This split has (\d+) training", text)
        if number and re.search(r": Epoch 0\b", text):
            moment = [int(part) for part in file.stem.split("_")[2:8]]
            made_split = "Creating new 5-fold cross-validation split" in text
            return datetime(*moment), int(number[1]), made_split  # type: ignore[arg-type]
    raise ValueError(f"{run}: no log of its training in {run.folder} names its number of cases.")


def compared_plans(run: Run, plans: dict[str, Any] | None = None) -> dict[str, Any]:
    """What must be the same: of the plans, and of this configuration.

    Args:
        run: trained, or with the plans given.
        plans: with which it will be trained.
    """
    if plans is None:
        plans = read_plans_file(run.model_folder / "plans.json", run.configuration)
    return conditions(plans, run.configuration)


def read_length(run: Run) -> dict[str, int]:
    """Epochs and iterations of a training, by nnU-Net's names.

    Raises:
        ValueError: debug.json, where nnU-Net notes them, is damaged.
    """
    file = run.folder / "debug.json"
    debug = read_object(file, *LENGTH)
    try:
        return {name: int(debug[name]) for name in LENGTH}
    except (TypeError, ValueError):
        raise ValueError(f"{file} is damaged: {' or '.join(LENGTH)} is no number.") from None


def read_course(run: Run) -> Course:
    """What a finished training logged."""
    log = read_model_file(run.folder / FINAL).get("logging")
    if log is None:
        raise ValueError(f"{run.folder / FINAL} holds no log of its training.")
    ends, starts = log["epoch_end_timestamps"], log["epoch_start_timestamps"]
    return Course(
        online_dice=tuple(float(value) for value in log["mean_fg_dice"]),
        seconds=float(np.subtract(ends, starts).sum()),
        iterations=math.prod(read_length(run).values()),
        batch_size=int(compared_plans(run)["batch_size"]),
        peak_memory=read_record(run).get(PEAK_MEMORY),
    )
