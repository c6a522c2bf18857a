"""Unlabelled cases, opened without any label, and the loader that serves views of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
    NonDetMultiThreadedAugmenter,
)
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.unlabelled import require_one_place
from nnunetv2_plgcl.semisupervised.views import WeakStrongViews
from nnunetv2_plgcl.workers import one_line

GONE_ALLOWED = 0.05  # share of the unlabelled cases

WORKERS_VARIABLE = "nnUNet_n_proc_DA"  # nnU-Net's


class UnlabelledDataset(nnUNetDatasetBlosc2):
    """Preprocessed images without their labels.

    Only ``<case>.b2nd`` is read: neither the segmentation beside it nor the ``.pkl``, whose
    foreground locations were derived from the label. In place of a segmentation the loader gets
    a constant, so that nnU-Net's own loader and transforms serve unlabelled cases unchanged.
    Source: ours.

    Args:
        folders: where each case lies.
        previous: folder of the segmentations of a cascade's first stage.
    """

    def __init__(self, folders: Mapping[str, Path], previous: Path | None = None) -> None:
        super().__init__(str(next(iter(folders.values()))), list(folders))
        self.folders = dict(folders)
        self.previous = previous

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Return image (C, X, Y, Z), a placeholder (1, X, Y, Z) of zeros, the first stage's
        segmentation (X, Y, Z) or None, and properties without any foreground location."""
        data = self._open(self.folders[identifier], identifier)
        placeholder = np.broadcast_to(np.int8(0), (1, *data.shape[1:]))
        previous = None if self.previous is None else self._open(self.previous, identifier)
        return data, placeholder, previous, {"class_locations": {}}

    def _open(self, folder: Path, identifier: str) -> Any:
        return blosc2.open(
            urlpath=os.path.join(folder, identifier + ".b2nd"),
            mode="r",
            dparams={"nthreads": 1},
            **self.mmap_kwargs,
        )


def unlabelled_dataset(
    cases: Sequence[str],
    images_un: Sequence[str],
    folder: Path,
    folder_un: Path,
    dataset_class: type[nnUNetBaseDataset],
    dataset_id: int,
    configuration: str,
    plans_name: str,
    previous: Path | None = None,
) -> UnlabelledDataset:
    """Open the preprocessed images of the unlabelled cases.

    Args:
        cases: all of them.
        images_un: those among them that lie in ``folder_un``.
        folder: of the cases with labels.
        folder_un: of the cases in ``imagesUn``.
        dataset_class: of nnU-Net, for the files in ``folder``.
        dataset_id: to be named in errors, as are ``configuration`` and ``plans_name``.
        previous: segmentations of a cascade's first stage.

    Raises:
        FileNotFoundError: a case was never preprocessed for this configuration.
        NotImplementedError: the preprocessed files are not in nnU-Net's Blosc2 format.
        ValueError: a case of ``imagesUn`` has the name of one with a label.
    """
    mend = f"nnUNetv2_preprocess -d {dataset_id} -c {configuration} -plans_name {plans_name}"
    if not issubclass(dataset_class, nnUNetDatasetBlosc2):
        raise NotImplementedError(
            f"Unlabelled cases are read from Blosc2 files (.b2nd), but {folder} holds "
            f"{dataset_class.__name__} files. Preprocess again with nnU-Net 2.8 or newer: {mend}"
        )
    require_one_place(images_un, folder)
    in_folder_un = set(images_un)
    folders = {case: folder_un if case in in_folder_un else folder for case in cases}
    missing = [case for case, where in folders.items() if not (where / f"{case}.b2nd").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{some(missing)} unlabelled but never preprocessed for configuration "
            f"{configuration}: no such file in {folder}. If the image is in imagesTr, run: {mend}"
        )
    return UnlabelledDataset(folders, previous)


class UnlabelledLoader(nnUNetDataLoader):
    """nnU-Net's loader, which goes on without the cases that cannot be read any more.

    Every batch says which these are: ``"unreadable"`` maps them to the error. Where none is left
    the batch says that alone. Source: ours.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_ignore = False  # no label, so no annotated region to sample from
        self.indices: list[str] = list(self._data.identifiers)
        self.unreadable: dict[str, str] = {}
        self._drawn: list[str] = []

    def get_indices(self) -> list[str]:
        self._drawn = list(super().get_indices())
        return self._drawn

    def generate_train_batch(self) -> dict[str, Any]:
        while self.indices:
            try:
                return {**super().generate_train_batch(), "unreadable": dict(self.unreadable)}
            except Exception:  # what Blosc2 raises depends on the damage
                gone = {case: error for case in self._drawn if (error := self._error_of(case))}
                if not gone:
                    raise
                self.unreadable.update(gone)
                self.indices = [case for case in self.indices if case not in gone]
        return {"unreadable": dict(self.unreadable)}

    def _error_of(self, case: str) -> str:
        """Why a case cannot be read; empty if it can."""
        try:
            data, segmentation, *_ = self._data.load_case(case)
            data[:], segmentation[:]
        except Exception as error:
            return one_line(error)
        return ""


def too_many_gone(gone: int, cases: int) -> bool:
    """Whether so many unlabelled cases cannot be read any more that it is another training."""
    return gone == cases or (gone >= 2 and gone > GONE_ALLOWED * cases)


def divide_workers(labelled: int, unlabelled: int) -> tuple[int, int]:
    """Divide nnU-Net's number of workers among labelled and unlabelled patches of a batch.

    Args:
        labelled, unlabelled: how many of each there are.

    Returns:
        workers for each, in proportion and at least one; 0 where nnU-Net has none.
    """
    workers = get_allowed_n_proc_DA()
    if workers == 0:
        return 0, 0
    for_unlabelled = round(workers * unlabelled / (labelled + unlabelled))
    for_unlabelled = max(1, min(for_unlabelled, workers - 1))
    return max(1, workers - for_unlabelled), for_unlabelled


@contextmanager
def workers_of_nnunet(number: int) -> Iterator[None]:
    """Inside, nnU-Net starts so many workers for its own loader: its variable says so."""
    before = os.environ.get(WORKERS_VARIABLE)
    os.environ[WORKERS_VARIABLE] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKERS_VARIABLE]
        else:
            os.environ[WORKERS_VARIABLE] = before


def unlabelled_loader(
    dataset: UnlabelledDataset,
    batch_size: int,
    initial_patch_size: Sequence[int],
    patch_size: Sequence[int],
    label_manager: LabelManager,
    views: WeakStrongViews,
    seeds: Callable[[int], np.ndarray],
    workers: int,
    pin_memory: bool,
    foreground_share: float = 0.0,
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """Serve batches of views.

    Args:
        dataset: the cases.
        batch_size: patches per batch.
        initial_patch_size: voxels cut out before the spatial transform, as nnU-Net chooses it.
        patch_size: voxels of a view.
        label_manager: of the dataset.
        views: makes the views of a patch.
        seeds: gives as many seeds as it is asked for, one for each worker.
        workers: processes that load, 0 for none beside this one.
        pin_memory: for copies to a GPU.
        foreground_share: probability of a patch to be centred on one of its case's foreground
            locations, as nnU-Net's probabilistic oversampling.
    """
    loader = UnlabelledLoader(
        dataset,
        batch_size,
        initial_patch_size,
        patch_size,
        label_manager,
        oversample_foreground_percent=foreground_share,
        probabilistic_oversampling=foreground_share > 0,  # which draws a number for each patch
        transforms=views,
    )
    if workers == 0:
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        loader,
        None,
        workers,
        num_cached=max(6, workers // 2),
        seeds=[int(seed) for seed in seeds(workers)],
        pin_memory=pin_memory,
        wait_time=0.002,
    )


def finish(*loaders: Any) -> None:
    """End the workers of loaders that have some."""
    for loader in loaders:
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()
