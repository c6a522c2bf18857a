"""Pseudo-labels of whole volumes: made from a prediction, stored, served with the images.

A patch, and a slice even more, does not show whether a structure hangs together with the rest of
its organ; a volume does.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_plgcl.semisupervised.cascade import with_first_stage
from nnunetv2_plgcl.semisupervised.components import filter_volume, largest
from nnunetv2_plgcl.semisupervised.loaders import UnlabelledDataset
from nnunetv2_plgcl.semisupervised.targets import confidence

# Of every labelled case this share of the foreground must hang together, for the rule that only
# the largest component of a pseudo-label is kept (ours).
CONNECTED_SHARE = 0.99

ISLANDS = "islands"  # what the loader takes for a class
MOST_PLACES = 10_000  # of a volume's islands, as many as nnU-Net keeps of a class


class VolumeLabel(NamedTuple):
    """The pseudo-label of a volume.

    Attributes:
        label: (*spatial), integers.
        islands: (N, 1 + axes), where voxels were removed: 0 for the channel, then the voxel, as
            nnU-Net's foreground locations; thinned out evenly to at most ``MOST_PLACES``.
    """

    label: np.ndarray
    islands: np.ndarray


def volume_label(
    logits: Tensor, label_manager: LabelManager, keep_largest: bool, threshold: float
) -> VolumeLabel:
    """The pseudo-label of a volume from the prediction for it.

    Components of the foreground other than the largest become background; where there is none, the
    whole volume is to be ignored. Elsewhere voxels of less confidence than the threshold get the
    ignore label. Source: the rule is that of nnU-Net's
    postprocessing; its use for pseudo-labels is ours.

    Args:
        logits: (K, *spatial).
        label_manager: of the dataset, with an ignore label.
        keep_largest: whether components are removed.
        threshold: of the confidence in the decision, 0 to 1.
    """
    probabilities = label_manager.apply_inference_nonlin(logits.float())
    exclusive = not label_manager.has_regions
    unsure = (confidence(probabilities[None], exclusive) < threshold)[0, 0].numpy()
    decision = label_manager.convert_probabilities_to_segmentation(probabilities).numpy()
    label = decision
    if keep_largest:
        parts = label_manager.foreground_labels if exclusive else label_manager.foreground_regions
        label = filter_volume(decision, probabilities.numpy(), largest, parts, True)
    removed = label != decision
    if keep_largest and not label.any():
        label[...] = label_manager.ignore_label
    label = np.where(unsure & ~removed, label_manager.ignore_label, label)
    fits_int8 = label_manager.ignore_label < 128
    label = label.astype(np.int8 if fits_int8 else np.int16)
    islands = np.argwhere(removed)
    islands = islands[:: max(1, -(-len(islands) // MOST_PLACES))]
    return VolumeLabel(label, np.pad(islands, ((0, 0), (1, 0))).astype(np.int32))


def most_bytes(shape: Sequence[int]) -> int:
    """That the label of a volume (*shape) and its islands take on the disk, of up to 127 labels."""
    voxels = math.prod(shape)
    return voxels + 4 * (1 + len(shape)) * min(voxels, MOST_PLACES)


def is_connected(masks: Iterable[np.ndarray]) -> bool:
    """Whether each mask (*spatial) is one component, but for 1 - ``CONNECTED_SHARE`` of its voxels.
    Source: ours."""
    for mask in masks:
        whole = np.count_nonzero(mask)
        if whole and np.count_nonzero(largest(mask, mask)) < CONNECTED_SHARE * whole:
            return False
    return True


def write_labels(folder: Path, labels: Mapping[str, Callable[[], VolumeLabel | None]]) -> None:
    """Store the pseudo-label of each case in nnU-Net's format, its islands beside it. Source: ours.

    They lie beside ``folder`` until ``publish``: it is either not there or whole, whatever
    interrupts the writing.

    Args:
        folder: where they will be.
        labels: makes them, case by case; None for a case that gets none.
    """
    unfinished = _unfinished(folder)
    unfinished.mkdir(parents=True, exist_ok=True)
    for case, make in labels.items():
        made = make()
        if made is not None:
            nnUNetDatasetBlosc2.save_seg(made.label[None], str(unfinished / case))
            np.save(unfinished / f"{case}.npy", made.islands)


def publish(folder: Path) -> None:
    """Give the labels of ``write_labels`` their place."""
    os.replace(_unfinished(folder), folder)


def discard(base: Path, epoch: int) -> None:
    """Remove the labels of this and later epochs, and what an interrupted writing left."""
    for folder in base.glob("epoch_*"):
        if not folder.name[6:].isdecimal() or int(folder.name[6:]) >= epoch:
            shutil.rmtree(folder)


def folder_of_epoch(base: Path, epoch: int) -> Path:
    """Where the labels made before an epoch lie."""
    return base / f"epoch_{epoch}"


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.unfinished")


class PseudoLabelledDataset(UnlabelledDataset):
    """Unlabelled images with stored pseudo-labels in place of a segmentation; of the cases that
    have one.

    Args:
        folders: where the image of each case lies.
        labels: folder of ``write_labels``.
        previous: folder of the segmentations of a cascade's first stage.
    """

    def __init__(
        self, folders: Mapping[str, Path], labels: Path, previous: Path | None = None
    ) -> None:
        labelled = {case: at for case, at in folders.items() if (labels / f"{case}.b2nd").is_file()}
        super().__init__(labelled, previous)
        self.labels = labels

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Return image (C, X, Y, Z), pseudo-label (1, X, Y, Z), the first stage's segmentation
        (X, Y, Z) or None, and properties with islands for foreground locations."""
        data, _, previous, _ = super().load_case(identifier)
        label, islands = self._open(self.labels, identifier), self.labels / f"{identifier}.npy"
        # a training begun with a version that noted none goes on; of many places one is read
        places = {ISLANDS: np.load(islands, mmap_mode="r")} if islands.is_file() else {}
        return data, label, previous, {"class_locations": places}


def image_of(dataset: UnlabelledDataset, case: str, foreground_labels: Sequence[int]) -> Tensor:
    """What a network sees of a whole preprocessed case, (C, X, Y, Z), float32.

    Args:
        foreground_labels: for the first stage's segmentation in a cascade.
    """
    data, _, previous, _ = dataset.load_case(case)
    image = np.asarray(data[:], dtype=np.float32)
    if previous is not None:
        image = with_first_stage(image, previous[:], foreground_labels)
    return torch.from_numpy(image)
