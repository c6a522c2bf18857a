"""What a trainer refuses when it starts, found by starting it."""

from __future__ import annotations

import copy
import difflib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_plgcl.datasets.check.finding import Finding
from nnunetv2_plgcl.datasets.preprocessed import require_no_other_files
from nnunetv2_plgcl.workers import one_line


def try_start(
    trainer_name: str, plans: dict, dataset: dict, configuration: str, fold: int | str
) -> tuple[Any, list[Finding]]:
    """Make a trainer and let it build its networks, on the CPU and with nothing left behind.

    Args:
        trainer_name: as ``nnUNetv2_train -tr`` finds it.
        plans: content of the plans file.
        dataset: content of dataset.json.
        configuration: of the plans.
        fold: number, or ``"all"``.

    Returns:
        The trainer, None if it refused; and what it said then. Its results would go nowhere, but it
        knows where the first stage of its cascade has put its own.

    Raises:
        RuntimeError: there is no such trainer.
    """
    trainer_class = find_trainer(trainer_name)
    plans = copy.deepcopy({**plans, "continue_training": False})  # as nnUNetv2_train passes them
    try:
        with redirect_stdout(io.StringIO()):
            arguments = plans, configuration, fold, copy.deepcopy(dataset), torch.device("cpu")
            with _results_nowhere() as nowhere:
                trainer: Any = trainer_class(*arguments)
                require_no_other_files(Path(trainer.preprocessed_dataset_folder))
                trainer.initialize()
            first_stage = trainer.folder_with_segs_from_previous_stage
            if first_stage is not None and nnUNet_results.is_set():
                inside = os.path.relpath(first_stage, nowhere)
                trainer.folder_with_segs_from_previous_stage = os.path.join(nnUNet_results, inside)
    except Exception as error:  # nnU-Net asserts, too
        said = f"{trainer_name} does not start: {one_line(error)}"
        if not isinstance(error, (ValueError, RuntimeError, AssertionError)):  # of no one's making
            said += f". Is configuration {configuration} of the plans as nnU-Net wrote it?"
        return None, [Finding("error", said)]
    return trainer, []


def find_trainer(name: str) -> type:
    """The class that ``nnUNetv2_train -tr NAME`` takes.

    Raises:
        RuntimeError: there is no such trainer.
    """
    try:
        with redirect_stdout(io.StringIO()):  # nnU-Net tells where it looks
            found: type = recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        from nnunetv2_plgcl.trainers import trainer_classes

        near = difflib.get_close_matches(name, ["nnUNetTrainer", *trainer_classes()], n=1)
        hint = f" Is {near[0]} meant?" if near else ""
        raise RuntimeError(
            f"nnU-Net finds no trainer {name}.{hint} Trainers of your own lie in the folder that "
            f"the environment variable nnUNet_extTrainer names."
        ) from None
    return found


@contextmanager
def _results_nowhere() -> Iterator[str]:
    before = os.environ.get("nnUNet_results")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["nnUNet_results"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["nnUNet_results"]
            else:
                os.environ["nnUNet_results"] = before
