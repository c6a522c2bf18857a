"""Predict a case once for each mirroring, with nnU-Net's own predictor. Source: ours."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_plgcl.model_files import load_model


@dataclass(frozen=True)
class Prediction:
    """One case.

    Attributes:
        segmentation: labels (Z, Y, X) of the raw image's voxels.
        probabilities: (K, Z, Y, X): of background and each label, or of each region.
        properties: of nnU-Net's reader, to write the segmentation with.
        agreement: of each class, the mean Dice of mirrored predictions with their mean; NaN where
            none predicts it. The mean probability of its voxels where the model does not mirror.
    """

    segmentation: np.ndarray
    probabilities: np.ndarray
    properties: dict[str, Any]
    agreement: list[float]


class MirroredPredictor:
    """nnU-Net's predictor of one fold, asked once for each mirroring that the model allows.

    The mean of the logits is what nnU-Net's test-time mirroring predicts, tiles at other places
    aside; the single predictions cost nothing more.

    Args:
        model_folder: as ``nnUNetv2_train`` writes it.
        fold: whose final weights.
        device: to predict on.

    Raises:
        NotImplementedError: second stage of a cascade.
        ValueError: a checkpoint that holds more than nnU-Net's do.
    """

    def __init__(self, model_folder: Path, fold: int | str, device: torch.device) -> None:
        self.predictor = nnUNetPredictor(
            use_mirroring=False,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net tells where it looks
            load_model(self.predictor, model_folder, fold, "checkpoint_final.pth")
        configuration = self.predictor.configuration_manager
        if configuration.previous_stage_name is not None:
            raise NotImplementedError(
                "The second stage of a cascade needs the first stage's segmentations of the "
                "unlabelled cases. Take 3d_fullres or 3d_lowres."
            )
        self.preprocessor = configuration.preprocessor_class(verbose=False)

    @property
    def labels(self) -> LabelManager:
        """Of the model."""
        labels: LabelManager = self.predictor.label_manager
        return labels

    @property
    def mirrorings(self) -> list[tuple[int, ...]]:
        """Axes of a preprocessed case (C, Z, Y, X) to flip; the first one is none."""
        allowed = self.predictor.allowed_mirroring_axes or ()
        first = 4 - len(self.predictor.configuration_manager.patch_size)
        axes = [first + axis for axis in allowed]
        return [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]

    def predict(self, files: Sequence[Path]) -> Prediction:
        """
        Args:
            files: of the case, one per channel or one for all.
        """
        of_model = self.predictor
        data, _, properties = self.preprocessor.run_case(
            [str(file) for file in files], None, of_model.plans_manager,
            of_model.configuration_manager, of_model.dataset_json,
        )  # fmt: skip
        image = torch.from_numpy(data)
        total: torch.Tensor | None = None
        single = []
        for axes in self.mirrorings:
            logits = of_model.predict_logits_from_preprocessed_data(torch.flip(image, axes))
            logits = torch.flip(logits.float(), axes)
            single.append(self._labels_of(logits))
            total = logits if total is None else total + logits
        assert total is not None  # one mirroring is none
        mean = total / len(single)
        segmentation, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
            mean, of_model.plans_manager, of_model.configuration_manager, self.labels, properties,
            return_probabilities=True, num_threads_torch=torch.get_num_threads(),
        )  # fmt: skip
        if len(single) > 1:
            agreement = dice_with_mean(single, self._labels_of(mean), self.classes)
        else:
            agreement = mean_probability(segmentation, probabilities, self.classes)
        return Prediction(segmentation, probabilities, properties, agreement)

    @property
    def classes(self) -> list[int | tuple[int, ...]]:
        """Labels, or regions of several."""
        labels = self.labels
        return list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)

    def _labels_of(self, logits: torch.Tensor) -> np.ndarray:
        return np.asarray(self.labels.convert_logits_to_segmentation(logits))


def dice_with_mean(
    single: Sequence[np.ndarray], mean: np.ndarray, classes: Sequence[int | tuple[int, ...]]
) -> list[float]:
    """Mean Dice of label maps with another one, for each class.

    Args:
        single: label maps of one shape.
        mean: label map of the same shape.
        classes: labels, or regions of several.

    Returns:
        NaN for a class that is in none of them.
    """
    found = []
    for of_class in classes:
        in_mean = region_or_label_to_mask(mean, of_class)
        masks = [region_or_label_to_mask(labels, of_class) for labels in single]
        if not in_mean.any() and not any(mask.any() for mask in masks):
            found.append(math.nan)
            continue
        dices = [
            2 * int((mask & in_mean).sum()) / (int(mask.sum()) + int(in_mean.sum()))
            if mask.any() or in_mean.any()
            else 1.0
            for mask in masks
        ]
        found.append(float(np.mean(dices)))
    return found


def mean_probability(
    segmentation: np.ndarray, probabilities: np.ndarray, classes: Sequence[int | tuple[int, ...]]
) -> list[float]:
    """Mean probability of each class over its voxels.

    Args:
        segmentation: (Z, Y, X).
        probabilities: (K, Z, Y, X): of background and each class, or of each class.
        classes: labels, or regions of several.

    Returns:
        NaN for a class without a voxel.
    """
    of_classes = probabilities[len(probabilities) - len(classes) :]
    masks = [region_or_label_to_mask(segmentation, of_class) for of_class in classes]
    return [
        float(probability[mask].mean()) if mask.any() else math.nan
        for probability, mask in zip(of_classes, masks, strict=True)
    ]
