"""A trained model that stock nnU-Net predicts with, without this package. Source: ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_plgcl.datasets.description import read_plans_file
from nnunetv2_plgcl.datasets.files import is_name
from nnunetv2_plgcl.model_files import read_model_file
from nnunetv2_plgcl.settings import PLANS_KEY

STOCK = nnUNetTrainer.__name__
PREDICTION_NEEDS = ("network_weights", "init_args", "inference_allowed_mirroring_axes")
BESIDE = ("dataset.json", "dataset_fingerprint.json")


def export_model(
    model_folder: Path,
    output: Path,
    checkpoint: str = "checkpoint_final.pth",
    only_folds: Sequence[str] | None = None,
) -> tuple[Path, Path]:
    """Write a model folder and a zip file for nnUNetv2_install_pretrained_model_from_zip.

    The trainer's name becomes nnUNetTrainer's; optimiser, student, teacher, memories and logs are
    left out. The weights are the deployed ones, so predictions are the same to the bit.

    Args:
        model_folder: as ``nnUNetv2_train`` writes it, DATASET/TRAINER__PLANS__CONFIGURATION.
        output: folder that gets DATASET/nnUNetTrainer__PLANS__CONFIGURATION; the zip file lies
            beside it, with ".zip" added. Neither may exist.
        checkpoint: of each fold.
        only_folds: their names without "fold_"; None for all.

    Returns:
        The new model folder and the zip file.

    Raises:
        FileNotFoundError: no model folder; a fold whose training did not finish.
        FileExistsError: the output is there already.
        ValueError: the trainer builds a network that nnUNetTrainer would not; a path in place of a
            name; no checkpoint of nnU-Net.
    """
    for name in (checkpoint, *map(str, only_folds or ())):
        if not is_name(name):  # it would be written to that path
            raise ValueError(f"{name} is a path; name a fold, or a file in each fold's folder.")
    parts = model_folder.resolve().name.split("__")
    if len(parts) != 3 or not (model_folder / "plans.json").is_file():
        raise FileNotFoundError(
            f"{model_folder} is no model folder of nnU-Net (TRAINER__PLANS__CONFIGURATION)."
        )
    archive = output.with_name(f"{output.name}.zip")
    for target in (output, archive):
        if target.exists():
            raise FileExistsError(f"{target} exists already: name another output.")
    folds = sorted(path for path in model_folder.glob("fold_*") if path.is_dir())
    if only_folds is not None:
        folds = [model_folder / f"fold_{name}" for name in only_folds]
    if not folds:
        raise FileNotFoundError(f"{model_folder} has no trained fold.")
    for fold in folds:
        if not (fold / checkpoint).is_file():
            raise FileNotFoundError(
                f"{fold} has no {checkpoint}: its training did not finish. Name others with -f."
            )
    trainer_name, plans_name, configuration = parts
    _require_stock_network(trainer_name)

    incomplete = output.with_name(f".{output.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    inside = Path(model_folder.resolve().parent.name) / f"{STOCK}__{plans_name}__{configuration}"
    try:
        made = incomplete / inside
        made.mkdir(parents=True)
        plans = read_plans_file(model_folder / "plans.json", configuration)
        for content in plans["configurations"].values():
            content.pop(PLANS_KEY, None)
        (made / "plans.json").write_text(json.dumps(plans, indent=4))
        for name in BESIDE:
            if (model_folder / name).is_file():
                shutil.copyfile(model_folder / name, made / name)
        for fold in folds:
            (made / fold.name).mkdir()
            torch.save(_stripped(fold / checkpoint, plans), made / fold.name / checkpoint)
        shutil.make_archive(str(incomplete / "archive"), "zip", incomplete, str(inside.parts[0]))
        os.replace(incomplete / "archive.zip", archive)
        os.replace(incomplete, output)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return output / inside, archive


def _stripped(file: Path, plans: dict[str, Any]) -> dict[str, Any]:
    checkpoint = read_model_file(file)
    missing = [key for key in PREDICTION_NEEDS if key not in checkpoint]
    if missing:
        raise ValueError(f"{file} is no checkpoint of nnU-Net: it has no {', '.join(missing)}.")
    kept = {key: checkpoint[key] for key in PREDICTION_NEEDS}
    kept["init_args"] = {**kept["init_args"], "plans": plans}
    return {**kept, "trainer_name": STOCK}


def _require_stock_network(trainer_name: str) -> None:
    trainer = recursive_find_trainer_class_by_name(trainer_name)
    built_by = trainer.build_network_architecture
    if built_by is not nnUNetTrainer.build_network_architecture:
        raise ValueError(
            f"{trainer_name} builds a network of its own, which {STOCK} would not build: it cannot "
            f"be exported for stock nnU-Net."
        )
