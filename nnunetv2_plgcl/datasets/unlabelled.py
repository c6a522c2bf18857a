"""Which cases are unlabelled, where they lie, and whether what is preprocessed is up to date.

They come from two places, which may be used together: cases that the fold of ``splits_final.json``
lists as unlabelled, and images without any label in ``imagesUn`` of the raw dataset, named as those
in ``imagesTr``. The latter are preprocessed into a folder of their own, beside the labelled cases
of the same configuration. Source: ours.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.files import dataset_number, write_json
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.raw import is_hidden

UNLABELLED_IMAGES = "imagesUn"
PREPROCESSING = "preprocessing.json"  # how the images of a folder were preprocessed
OF_PLANS = ("image_reader_writer", "transpose_forward")
OF_CONFIGURATION = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)


def unlabelled_folder(preprocessed_dataset: Path, data_identifier: str) -> Path:
    """Where preprocessed images of ``imagesUn`` lie, beside the labelled ones."""
    return preprocessed_dataset / f"{data_identifier}_unlabelled"


def preprocessing_of(plans: dict, configuration: str) -> dict[str, Any]:
    """The part of the plans that decides how an image is preprocessed."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # imports torch

    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration).configuration
    of_intensity = "foreground_intensity_properties_per_channel"  # nnU-Net reads an older key too
    return {
        **{key: plans[key] for key in OF_PLANS},
        of_intensity: getattr(manager, of_intensity),
        **{key: resolved[key] for key in OF_CONFIGURATION},
    }


def write_preprocessing(folder: Path, preprocessing: dict[str, Any]) -> None:
    """Note in the folder how its images were preprocessed."""
    write_json(folder / PREPROCESSING, preprocessing)


def read_preprocessing(folder: Path) -> dict[str, Any] | None:
    """Inverse of ``write_preprocessing``; None where nothing legible was noted."""
    try:
        noted: dict[str, Any] = json.loads((folder / PREPROCESSING).read_text())
    except (OSError, ValueError):
        return None
    return noted


def preprocessed_cases(folder: Path) -> list[str]:
    """Whole cases of a folder made by ``nnUNetv2_plgcl_preprocess``; none without the folder."""
    return sorted(file.name[: -len(".b2nd")] for file in folder.glob("[!.]*.b2nd"))


def unlabelled_cases(
    splits: Sequence[dict],
    fold: int | str,
    splits_file: Path,
    dataset_id: int,
    images_un: Sequence[str] = (),
) -> list[str]:
    """Cases that the fold lists under its third key, ``"unlabelled"``, and those of ``imagesUn``.

    Plain nnU-Net ignores that key and trains on the fold's labelled cases alone. Source: ours.

    Args:
        splits: what ``splits_file`` holds; empty without the file.
        fold: number, or ``"all"``.
        splits_file: to be named in errors.
        dataset_id: to be named in errors.
        images_un: preprocessed cases of ``imagesUn``, unlabelled in every fold, which may list
            them all the same.

    Raises:
        ValueError: there is no such fold; it has no unlabelled, labelled or validation case, or
            one that is unlabelled and labelled or in validation, or names one twice in a part.
    """
    mend = (
        f"Write a split with unlabelled cases: nnUNetv2_plgcl_split -d {dataset_id} --labelled "
        f"0.1, or put images without a label into {UNLABELLED_IMAGES}: nnUNetv2_plgcl_preprocess"
    )
    if isinstance(fold, str) and fold != "all":
        raise ValueError(f"A fold is a number or all, not {fold}.")
    if isinstance(fold, int) and splits and fold >= len(splits):
        raise ValueError(f"Fold {fold} is not in {splits_file}, which has {len(splits)}. {mend}")
    listed = isinstance(fold, int) and fold < len(splits)
    split = splits[int(fold)] if listed else {"train": [], "val": []}
    named = split.get("unlabelled", [])
    cases = [*named, *(case for case in images_un if case not in set(named))]
    if not cases and not listed:
        raise ValueError(f"Fold {fold} is not in {splits_file}, so no case is unlabelled. {mend}")
    if not cases:
        raise ValueError(f"Fold {fold} of {splits_file} names no unlabelled case. {mend}")
    for part, meaning in (("train", "labelled"), ("val", "in validation")):
        if listed and not split[part]:
            raise ValueError(f"Fold {fold} of {splits_file} has no case {meaning}. {mend}")
        both = sorted(set(cases) & set(split[part]))
        if both:
            raise ValueError(
                f"{some(both)} of fold {fold} in {splits_file} "
                f"{'is' if len(both) == 1 else 'are'} both unlabelled and {meaning}. "
                f"Remove from one of the two. {mend}"
            )
    for part, meaning in (("train", "labelled"), ("val", "validation"), ("unlabelled",) * 2):
        twice = [case for case, number in Counter(split.get(part, [])).items() if number > 1]
        if twice:
            raise ValueError(
                f"Fold {fold} of {splits_file} lists {some(twice)} twice as {meaning}."
            )
    return cases


def require_one_place(images_un: Sequence[str], folder: Path) -> None:
    """Refuse preprocessed images of ``imagesUn`` that are among those of ``imagesTr`` too.

    Raises:
        ValueError: with their names.
    """
    both = [case for case in images_un if (folder / f"{case}.b2nd").is_file()]
    if both:
        raise ValueError(
            f"{some(both)}: in {UNLABELLED_IMAGES} and in imagesTr. A case is labelled or "
            f"unlabelled: remove or rename one, and preprocess again."
        )


def require_current(
    folder_un: Path, plans: dict, configuration: str, raw_images: Path, file_ending: str
) -> None:
    """Refuse preprocessed images of ``imagesUn`` that do not fit the plans or the raw images.

    Args:
        folder_un: made by ``nnUNetv2_plgcl_preprocess``, or missing.
        plans: of the training.
        configuration: of the training.
        raw_images: ``imagesUn`` of the raw dataset; it need not be there any more.
        file_ending: of the raw images.

    Raises:
        FileNotFoundError: a raw image was never preprocessed for this configuration.
        ValueError: they were preprocessed with other plans.
    """
    mend = (
        f"Run: nnUNetv2_plgcl_preprocess -d {dataset_number(plans['dataset_name'])} "
        f"-c {configuration} -p {plans['plans_name']}"
    )
    done = preprocessed_cases(folder_un)
    if done and read_preprocessing(folder_un) != preprocessing_of(plans, configuration):
        raise ValueError(f"The images in {folder_un} were preprocessed with other plans. {mend}")
    try:
        names = os.listdir(raw_images)
    except OSError:  # not there, or not to be read
        return
    channel = len("_0000" + file_ending)
    raw = {n[:-channel] for n in names if n.endswith(file_ending) and not is_hidden(n)}
    missing = sorted(raw - set(done))
    if missing:
        raise FileNotFoundError(
            f"{some(missing)} of {raw_images} never preprocessed for configuration "
            f"{configuration}. {mend}"
        )
