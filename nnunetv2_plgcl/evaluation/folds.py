"""The cases of a fold, as nnU-Net trains them. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_plgcl.datasets.files import dataset_number, nnunet_folder, read_split, split_file
from nnunetv2_plgcl.datasets.preprocessed import require_no_other_files
from nnunetv2_plgcl.datasets.raw import is_hidden
from nnunetv2_plgcl.datasets.unlabelled import preprocessed_cases, unlabelled_folder

ALL = "all"


@dataclass(frozen=True)
class Fold:
    """Cases of the parts of a fold; those of ``imagesUn`` are unlabelled in every one."""

    labelled: list[str]
    validation: list[str]
    unlabelled: list[str]

    @classmethod
    def of(cls, parts: Mapping[str, Sequence[str]], images_un: Sequence[str] = ()) -> Fold:
        """From an entry of splits_final.json, and cases that are unlabelled in every fold."""
        unlabelled = [*parts.get("unlabelled", ()), *images_un]
        return cls(list(parts["train"]), list(parts["val"]), unlabelled)

    @property
    def share(self) -> float:
        """Of labelled cases among those that a semi-supervised trainer sees, 0 to 1."""
        return len(self.labelled) / (len(self.labelled) + len(self.unlabelled))


def read_fold(plans: dict, configuration: str, fold: int | str) -> Fold:
    """Cases of a fold of a preprocessed dataset.

    Args:
        plans: content of the plans file.
        configuration: of the plans.
        fold: number, or ``"all"``: then all labelled cases are trained and validated.

    Raises:
        FileNotFoundError: the configuration is not preprocessed.
        ValueError: there is no such fold.
    """
    name = plans["dataset_name"]
    base = nnunet_folder("nnUNet_preprocessed") / name
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    folder = base / identifier
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Nothing is preprocessed for configuration {configuration}: there is no folder "
            f"{folder}. Run: nnUNetv2_preprocess -d {dataset_number(name)} -c {configuration} "
            f"-plans_name {plans['plans_name']}"
        )
    images_un = preprocessed_cases(unlabelled_folder(base, identifier))
    if fold == ALL:
        everything = _identifiers(folder)
        return Fold(everything, everything, images_un)
    file = split_file(name)
    splits = read_split(file, fold) if file.is_file() else nnunet_split(folder)
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        raise ValueError(f"{file} has no fold {fold}, it has {len(splits)}.")
    return Fold.of(splits[fold], images_un)


def nnunet_split(folder: Path) -> list[dict[str, list[str]]]:
    """The split that nnU-Net 2.8.1 writes (nnUNetTrainer.do_split) where there is none.

    Args:
        folder: preprocessed cases of a configuration.

    Raises:
        ValueError: it has fewer cases than nnU-Net makes folds.
    """
    splits = generate_crossval_split(np.array(_identifiers(folder)), seed=12345, n_splits=5)
    return [{part: [str(c) for c in cases] for part, cases in fold.items()} for fold in splits]


def _identifiers(folder: Path) -> list[str]:
    require_no_other_files(folder)
    found = infer_dataset_class(str(folder)).get_identifiers(str(folder))
    return sorted(str(case) for case in found if not is_hidden(case))
