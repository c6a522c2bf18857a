"""Cascades: what the first stage has to predict for the second, beyond what nnU-Net predicts.

The second stage sees the first one's segmentation beside each image. nnU-Net's first stage predicts
a case when it is in validation. Ours predicts the unlabelled cases too, into the fold's own folder:
another fold's network may have learnt from labels that this fold must not see. It predicts labelled
training cases only as long as no fold has them in validation, as with nnU-Net's fold all: of those
the second stage sees segmentations better than those of new images. Source: ours.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import distributed as dist

from nnunetv2_plgcl.datasets.files import dataset_number
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.unlabelled import unlabelled_folder
from nnunetv2_plgcl.semisupervised.loaders import UnlabelledDataset
from nnunetv2_plgcl.semisupervised.step import SemiSupervisedStep

PREDICTED = "predicted_next_stage"  # nnU-Net's name
STAND_IN = "of_training"  # ending of a note beside the segmentation of a case that was trained on


def of_unlabelled(trainer: nnUNetTrainer) -> Path | None:
    """Folder of the first stage's segmentations of this fold's unlabelled cases; None for a
    configuration that is no second stage."""
    if not trainer.is_cascaded:
        return None
    first_stage = Path(trainer.folder_with_segs_from_previous_stage).parents[1]
    return first_stage / f"fold_{trainer.fold}" / PREDICTED / trainer.configuration_name


def require_first_stage(
    trainer: nnUNetTrainer, labelled: Iterable[str], unlabelled: Iterable[str]
) -> None:
    """Refuse a second stage without the first one's segmentations.

    Args:
        labelled: cases of training and validation.
        unlabelled: cases, of which only a semi-supervised trainer needs them.

    Raises:
        FileNotFoundError: of which cases, and the command that makes them.
    """
    folder = of_unlabelled(trainer)
    if folder is None:
        return
    of_labelled = Path(trainer.folder_with_segs_from_previous_stage)
    ours = isinstance(trainer, SemiSupervisedStep)
    files = dict.fromkeys(labelled, of_labelled) | {c: folder for c in unlabelled if ours}
    missing = [case for case, where in files.items() if not (where / f"{case}.b2nd").is_file()]
    if missing:
        plans, fold = trainer.plans_manager, trainer.fold if ours else "FOLD"
        command = (
            f"nnUNetv2_train {dataset_number(plans.dataset_name)} "
            f"{trainer.configuration_manager.previous_stage_name} {fold} "
            f"-tr {type(trainer).__name__} -p {plans.plans_name}"
        )
        raise FileNotFoundError(
            f"{some(sorted(missing))}: no segmentation of the first stage in {of_labelled}"
            f"{f' or {folder}' if ours else ''}. It is made at the end of: {command}"
            f"{'' if ours else ', with the FOLD that has the case in validation'}. If that is "
            f"trained, add --val."
        )


def predict_for_next_stages(trainer: nnUNetTrainer, unlabelled: UnlabelledDataset) -> None:
    """Predict what the next stages need and nnU-Net does not predict.

    Args:
        trainer: after its final validation; its network has the weights to predict with.
        unlabelled: cases of the fold.
    """
    stages = trainer.configuration_manager.next_stage_names or []
    if not stages:
        return
    labelled, _ = trainer.get_tr_and_val_datasets()
    everyone = Path(trainer.output_folder_base) / PREDICTED
    of_fold = Path(trainer.output_folder) / PREDICTED
    work: list[tuple[nnUNetBaseDataset, str, Path]] = [
        *((unlabelled, case, of_fold / stage / case) for case in unlabelled.identifiers
          for stage in stages),
        *((labelled, case, everyone / stage / case) for case in labelled.identifiers
          for stage in stages if not _is_validated(everyone / stage / case)),
    ]  # fmt: skip
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    ranks = dist.get_world_size() if trainer.is_ddp else 1
    if trainer.is_ddp:
        dist.barrier()  # what one rank writes must not shorten the list of another
    pending: deque[Future] = deque()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(default_num_processes, spawn) as pool:
        for dataset, case, file in work[trainer.local_rank :: ranks]:
            shape = _shape_in(trainer, file.parent.name, case)
            if shape is None:
                continue
            trainer.print_to_log_file(f"predicting {case} for {file.parent.name}")
            image = np.asarray(dataset.load_case(case)[0][:], dtype=np.float32)
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).cpu()
            file.parent.mkdir(parents=True, exist_ok=True)
            while len(pending) >= default_num_processes:  # each holds a volume in memory
                pending.popleft().result()
            # nnU-Net resamples from spacing to spacing of the plans; of the image it needs the axes
            properties = {"spacing": [1.0] * 3, "shape_after_cropping_and_before_resampling": shape}
            pending.append(
                pool.submit(
                    _resample_and_replace,
                    file,
                    file.parent.parent == everyone,
                    logits,
                    shape,
                    trainer.plans_manager,
                    trainer.configuration_manager,
                    properties,
                    trainer.dataset_json,
                )
            )
        for future in pending:
            future.result()
    trainer.set_deep_supervision_enabled(True)


def _resample_and_replace(
    file: Path, stands_in: bool, logits: torch.Tensor, shape: Sequence[int], *of_training: Any
) -> None:
    """Write a segmentation under another name, then rename, so that a kill leaves no half of one.

    Args:
        file: without ending.
        stands_in: note that its case was trained on; before the renaming, so that it is never taken
            for nnU-Net's.
        logits, shape, of_training: for nnU-Net's ``resample_and_save``.
    """
    unfinished = file.with_name(f".{file.name}")
    resample_and_save(
        logits, shape, str(unfinished), *of_training, default_num_processes, nnUNetDatasetBlosc2
    )
    if stands_in:
        file.with_name(f"{file.name}.{STAND_IN}").touch()
    os.replace(f"{unfinished}.b2nd", f"{file}.b2nd")


def _is_validated(file: Path) -> bool:
    """Whether a case's segmentation is there and is nnU-Net's, of the fold that validates it; one
    of ours may have been there before."""
    segmentation, note = (file.with_name(f"{file.name}.{end}") for end in ("b2nd", STAND_IN))
    if not segmentation.is_file():
        return False
    return not note.is_file() or note.stat().st_mtime_ns < segmentation.stat().st_mtime_ns


def _shape_in(trainer: nnUNetTrainer, stage: str, case: str) -> tuple[int, ...] | None:
    """Voxels of a case as preprocessed for another stage."""
    base = Path(trainer.preprocessed_dataset_folder_base)
    identifier = trainer.plans_manager.get_configuration(stage).data_identifier
    for folder in (base / identifier, unlabelled_folder(base, identifier)):
        if (folder / f"{case}.b2nd").is_file():
            return tuple(UnlabelledDataset({case: folder}).load_case(case)[0].shape[1:])
    trainer.print_to_log_file(
        f"{case} is not preprocessed for {stage}, so it is not predicted for it. Preprocess it, "
        f"then add --val to this training's command."
    )
    return None


def with_first_stage(image: np.ndarray, previous: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """What a network of a second stage sees: the image (C, *spatial) and one channel for each
    foreground label of the first stage's segmentation (*spatial), as in nnU-Net's validation."""
    one_hot = convert_labelmap_to_one_hot(previous, labels, output_dtype=image.dtype)
    return np.vstack((image, one_hot))
