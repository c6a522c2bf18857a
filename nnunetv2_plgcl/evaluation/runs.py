"""One training of a comparison: where it lies, what it was given, what it cost. Source: ours."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_plgcl.datasets.files import nnunet_folder
from nnunetv2_plgcl.datasets.unlabelled import some
from nnunetv2_plgcl.settings import PLANS_KEY

FINAL = "checkpoint_final.pth"
RECORD = "plgcl_run.json"
LABELLED = "labelled_cases"  # in the record, and an attribute of our trainers in debug.json
UNLABELLED = "unlabelled_cases"  # an attribute of our trainers in debug.json
PEAK_MEMORY = "peak_memory_bytes"
OWN_NAMES = ("plans_name", "continue_training")  # keys of plans.json that may differ


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
    fold: int
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


def require_alike(
    runs: Sequence[Run],
    splits: Sequence[Mapping[str, Any]],
    images_un: Sequence[str],
    split_file: Path,
    trust_split: bool,
) -> None:
    """Refuse runs that were not trained under the same conditions.

    Labelled, unlabelled and validation cases must be those of the split, plans (but for their name
    and our settings) and iterations those of the first run.

    Args:
        runs: finished.
        splits: content of ``split_file``.
        images_un: unlabelled cases of every fold.
        split_file: to be named in errors; its date counts.
        trust_split: believe that a trainer which does not note its cases was trained with this
            split, although the file is younger than the training.

    Raises:
        ValueError: what differs, and in which run.
    """
    first = runs[0]
    plans, length = _plans(first), _debug(first, "num_epochs", "num_iterations_per_epoch")
    for run in runs:
        if run.fold >= len(splits):
            raise ValueError(f"{split_file} has no fold {run.fold}, it has {len(splits)}.")
        _require_split(run, splits[run.fold], images_un, split_file, trust_split)
        theirs = _plans(run)
        different = sorted(k for k in {*plans, *theirs} if plans.get(k) != theirs.get(k))
        if different:
            raise ValueError(
                f"{run} and {first} were trained with different plans: {', '.join(different)}."
            )
        its_length = _debug(run, *length)
        if its_length != length:
            raise ValueError(
                f"{run} was trained for {_in_words(its_length)}, {first} for {_in_words(length)}."
            )


def _require_split(
    run: Run,
    fold: Mapping[str, Sequence[str]],
    images_un: Sequence[str],
    split_file: Path,
    trust_split: bool,
) -> None:
    named = f"fold {run.fold} of {split_file}"
    ending = json.loads((run.model_folder / "dataset.json").read_text())["file_ending"]
    validated = {f.name.removesuffix(ending) for f in run.validation.glob(f"*{ending}")}
    _require_same("validation", validated, fold["val"], run, named)
    unlabelled = _noted_by_trainer(run, UNLABELLED)
    if unlabelled is not None:
        there = [*fold.get("unlabelled", []), *images_un]
        _require_same("unlabelled", unlabelled, there, run, named)
    labelled = _noted_by_trainer(run, LABELLED)
    if labelled is None and LABELLED in (record := read_record(run)):
        labelled = set(record[LABELLED])
    if labelled is not None:
        _require_same("labelled", labelled, fold["train"], run, named)
        return
    log, number = _start_of_training(run)
    if number != len(fold["train"]):
        raise ValueError(f"{run} had {number} labelled cases, {named} has {len(fold['train'])}.")
    if not trust_split and split_file.stat().st_mtime > log.timestamp():
        raise ValueError(
            f"{split_file} is younger than the training of {run}, which notes no names: its "
            f"labelled cases may have been others. Train it again, or add --trust-split if the "
            f"file was merely copied."
        )


def _require_same(part: str, of_run: set[str], listed: Sequence[str], run: Run, named: str) -> None:
    other = sorted(of_run ^ set(listed))
    if other:
        raise ValueError(
            f"{run} has other {part} cases than {named}. {some(other)} in one of them only."
        )


def _noted_by_trainer(run: Run, attribute: str) -> set[str] | None:
    """Cases that our trainers note in debug.json; None for a trainer that does not."""
    debug = json.loads((run.folder / "debug.json").read_text())
    return set(ast.literal_eval(debug[attribute])) if attribute in debug else None


def read_record(run: Run) -> dict[str, Any]:
    """What ``launch`` noted beside a training; empty where another started it."""
    file = run.folder / RECORD
    return json.loads(file.read_text()) if file.is_file() else {}


def _start_of_training(run: Run) -> tuple[datetime, int]:
    """When the newest log of a training from its first epoch on begins, and how many training
    cases nnU-Net writes into it."""
    for file in sorted(run.folder.glob("training_log_*.txt"), reverse=True):
        text = file.read_text()
        number = re.search(r"This split has (\d+) training", text)
        if number and re.search(r": Epoch 0\b", text):
            moment = [int(part) for part in file.stem.split("_")[2:8]]
            return datetime(*moment), int(number[1])  # type: ignore[arg-type]
    raise ValueError(f"{run}: no log of its training in {run.folder} names its number of cases.")


def _plans(run: Run) -> dict[str, Any]:
    """What must be the same: of the plans, and of this configuration."""
    plans = json.loads((run.model_folder / "plans.json").read_text())
    manager = PlansManager(plans)
    configuration = dict(manager.get_configuration(run.configuration).configuration)
    configuration.pop(PLANS_KEY, None)
    general = {k: v for k, v in plans.items() if k not in (*OWN_NAMES, "configurations")}
    return {**general, **configuration}


def _debug(run: Run, *names: str) -> dict[str, int]:
    debug = json.loads((run.folder / "debug.json").read_text())
    return {name: int(debug[name]) for name in names}


def _in_words(length: Mapping[str, int]) -> str:
    return " x ".join(f"{value} {name.removeprefix('num_')}" for name, value in length.items())


def read_course(run: Run) -> Course:
    """What a finished training logged."""
    checkpoint = torch.load(run.folder / FINAL, map_location="cpu", weights_only=False)
    log = checkpoint["logging"]
    ends, starts = log["epoch_end_timestamps"], log["epoch_start_timestamps"]
    epochs = _debug(run, "num_epochs", "num_iterations_per_epoch")
    return Course(
        online_dice=tuple(float(value) for value in log["mean_fg_dice"]),
        seconds=float(np.subtract(ends, starts).sum()),
        iterations=epochs["num_epochs"] * epochs["num_iterations_per_epoch"],
        batch_size=int(_plans(run)["batch_size"]),
        peak_memory=read_record(run).get(PEAK_MEMORY),
    )
