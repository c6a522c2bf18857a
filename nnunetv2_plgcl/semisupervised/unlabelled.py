"""Which cases are unlabelled, and a dataset of them that never opens a label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2


class UnlabelledDataset(nnUNetDatasetBlosc2):
    """Preprocessed images without their labels.

    Only ``<case>.b2nd`` is read: neither the segmentation beside it nor the ``.pkl``, whose
    foreground locations were derived from the label. In place of a segmentation the loader gets
    a constant, so that nnU-Net's own loader and transforms serve unlabelled cases unchanged.
    Source: ours.
    """

    def load_case(self, identifier: str) -> tuple[Any, np.ndarray, None, dict]:
        """Return image (C, X, Y, Z), a placeholder (1, X, Y, Z) of zeros, None and properties
        without any foreground location."""
        data = blosc2.open(
            urlpath=os.path.join(self.source_folder, identifier + ".b2nd"),
            mode="r",
            dparams={"nthreads": 1},
            **self.mmap_kwargs,
        )
        placeholder = np.broadcast_to(np.int8(0), (1, *data.shape[1:]))
        return data, placeholder, None, {"class_locations": {}}


def unlabelled_cases(
    splits: Sequence[dict], fold: int | str, splits_file: Path, dataset_id: str
) -> list[str]:
    """Cases that the fold lists under its third key, ``"unlabelled"``.

    Plain nnU-Net ignores that key and trains on the fold's labelled cases alone. Source: ours.

    Raises:
        ValueError: the fold names no unlabelled case, or one that is also labelled or in
            validation, or names one twice.
    """
    mend = (
        f"Write a split with unlabelled cases: nnUNetv2_plgcl_split -d {dataset_id} --labelled 0.1"
    )
    if not isinstance(fold, int) or fold >= len(splits):
        raise ValueError(f"Fold {fold} is not in {splits_file}, so no case is unlabelled. {mend}")
    cases = list(splits[fold].get("unlabelled", []))
    if not cases:
        raise ValueError(f"Fold {fold} of {splits_file} names no unlabelled case. {mend}")
    for part, meaning in (("train", "labelled"), ("val", "in validation")):
        both = sorted(set(cases) & set(splits[fold][part]))
        if both:
            raise ValueError(
                f"{_some(both)} of fold {fold} in {splits_file} "
                f"{'is' if len(both) == 1 else 'are'} both unlabelled and {meaning}. "
                f"Remove from one of the two. {mend}"
            )
    if len(set(cases)) != len(cases):
        twice = sorted({case for case in cases if cases.count(case) > 1})
        raise ValueError(f"Fold {fold} of {splits_file} lists {_some(twice)} twice as unlabelled.")
    return cases


def unlabelled_dataset(
    cases: Sequence[str],
    folder: Path,
    dataset_class: type[nnUNetBaseDataset],
    dataset_id: str,
    configuration: str,
    plans_name: str,
) -> UnlabelledDataset:
    """Open the preprocessed images of the unlabelled cases.

    Raises:
        FileNotFoundError: a case was never preprocessed for this configuration.
        NotImplementedError: the preprocessed files are not in nnU-Net's Blosc2 format.
    """
    mend = f"nnUNetv2_preprocess -d {dataset_id} -c {configuration} -plans_name {plans_name}"
    if not issubclass(dataset_class, nnUNetDatasetBlosc2):
        raise NotImplementedError(
            f"Unlabelled cases are read from Blosc2 files (.b2nd), but {folder} holds "
            f"{dataset_class.__name__} files. Preprocess again with nnU-Net 2.8 or newer: {mend}"
        )
    missing = [case for case in cases if not (folder / f"{case}.b2nd").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{_some(missing)} unlabelled but never preprocessed for configuration "
            f"{configuration}: no such file in {folder}. If the image is in imagesTr, run: {mend}"
        )
    return UnlabelledDataset(str(folder), list(cases))


def _some(cases: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(cases) - shown} more" if len(cases) > shown else ""
    noun = "Case" if len(cases) == 1 else "Cases"
    return f"{noun} {', '.join(cases[:shown])}{more}"
