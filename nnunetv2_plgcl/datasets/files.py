"""Files of nnU-Net's datasets that we read and write: where they lie and what they hold.

Source: ours.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_plgcl.datasets.groups import EVERY_CASE_ITSELF
from nnunetv2_plgcl.workers import one_line

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

PARTS = ("train", "val", "unlabelled")  # of a fold; any other key is passed over
GROUPS = "plgcl_groups.json"  # beside splits_final.json


def read_json(file: Path) -> Any:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, with its name.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged, it is not JSON: {error}") from None


def write_json(file: Path, content: object) -> None:
    """Write in one step, so that no reader ever sees half of it."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(content, indent=4), encoding="utf-8")
    os.replace(temporary, file)


def states_of(files: Iterable[Path]) -> list[list]:
    """Name, size and time of each file: other ones where a file was replaced or is gone."""
    return [[str(file), *_size_and_time(file)] for file in files]


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def read_split(file: Path) -> list[dict[str, list[str]]]:
    """What a ``splits_final.json`` holds; nothing where there is no file.

    Raises:
        ValueError: it is damaged, no list of folds with lists of cases, a case is a path, or a part
            of a fold has another name, such as "unlabeled", that plain reading would pass over.
    """
    if not file.is_file():
        return []
    split = read_json(file)
    if not isinstance(split, list) or not all(isinstance(fold, dict) for fold in split):
        raise ValueError(
            f"{file} is no list of folds such as "
            f'[{{"train": [...], "val": [...], "unlabelled": [...]}}].'
        )
    for number, fold in enumerate(split):
        for key in set(fold) - set(PARTS):
            meant = _part_like(key)
            if meant == "unlabelled" or (meant and meant not in fold):
                raise ValueError(f'{file}: fold {number} has "{key}". Is "{meant}" meant?')
        for part in PARTS:
            cases = fold.get(part, [] if part == "unlabelled" else None)
            if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
                raise ValueError(f'{file}: "{part}" of fold {number} is no list of case names.')
            for case in cases:
                if re.search(r"[/\\]", case) or case in ("", ".", ".."):
                    raise ValueError(
                        f'{file}: "{case}" in "{part}" of fold {number} is no case name, but a '
                        f"path. Write the name alone, without folder, channel and file ending."
                    )
    return split


def inside(folder: Path, relative: str) -> Path:
    """The path of what a JSON file says lies in a folder; links in it may lead where they like.

    Raises:
        ValueError: it lies elsewhere.
    """
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise ValueError(f"{relative} is not in {folder}.")
    return folder / relative


def _part_like(key: str) -> str | None:
    """The part of a fold that a key looks like, written otherwise, such as "unlabeled"."""
    word = re.sub("[^a-z]", "", key.lower())
    near = difflib.get_close_matches(word, [*PARTS, "validation", "training"], n=1, cutoff=0.7)
    if "unlab" in word or near == ["unlabelled"]:
        return "unlabelled"
    return {"validation": "val", "training": "train"}.get(near[0], near[0]) if near else None


def read_group_pattern(preprocessed: Path) -> str | None:
    """What ``write_group_pattern`` noted beside a split; None where nothing was."""
    file = preprocessed / GROUPS
    return str(read_json(file)["group_by"]) if file.is_file() else None


def write_group_pattern(preprocessed: Path, pattern: str) -> None:
    """Note what in a case name is the patient, for the check before a training.

    Nothing is noted where each case is a group of its own."""
    if pattern == EVERY_CASE_ITSELF:
        (preprocessed / GROUPS).unlink(missing_ok=True)
    else:
        (preprocessed / GROUPS).write_text(json.dumps({"group_by": pattern}), encoding="utf-8")


def require_replaceable(
    file: Path, split: Sequence[Mapping[str, Sequence[str]]], force: bool
) -> bool:
    """Whether ``file`` has to be written to hold the split.

    Raises:
        FileExistsError: it holds something else and ``force`` is not set.
    """
    if not file.exists():
        return True
    try:
        same = read_split(file) == split
    except ValueError:
        same = False
    if not same and not force:
        raise FileExistsError(
            f"{file} holds a different split. --force replaces it and keeps a backup."
        )
    return not same


def write_split(
    file: Path, split: Sequence[Mapping[str, Sequence[str]]], force: bool = False
) -> Path | None:
    """Write a split in one step, so that no reader ever sees half of it.

    Returns:
        The backup of the file that was replaced, None if there was none. A backup never
        replaces an earlier one.

    Raises:
        FileExistsError: there is another split and ``force`` is not set.
    """
    if not require_replaceable(file, split, force):
        return None
    backup = _back_up(file) if file.exists() else None
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(split, stream, indent=4)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return backup


def _back_up(file: Path) -> Path:
    content, number = file.read_bytes(), 1
    while True:
        backup = file.with_name(f"{file.stem}.backup{number}{file.suffix}")
        try:
            with open(backup, "xb") as stream:  # fails on an earlier backup
                stream.write(content)
            return backup
        except FileExistsError:
            number += 1


def dataset_number(name: str) -> int:
    """Number in the full name of a dataset, such as 1234 in "Dataset1234_Heart".

    nnU-Net's ``convert_dataset_name_to_id`` (2.8.1) reads the first three digits only.

    Raises:
        ValueError: the name is not "Dataset" with a number.
    """
    match = re.match(r"Dataset(\d+)", name)
    if match is None:
        raise ValueError(f"{name} is no name of a dataset, such as Dataset027_ACDC.")
    return int(match[1])


def dataset_name(dataset: str) -> str:
    """Full name of a dataset in nnUNet_raw or nnUNet_preprocessed.

    Args:
        dataset: number or full name, e.g. "27" or "Dataset027_ACDC".

    Raises:
        ValueError: nnUNet_raw is not set; no or no unique such dataset.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    raw = nnunet_folder("nnUNet_raw")
    try:
        name = str(maybe_convert_to_dataset_name(dataset))
        if dataset.isdecimal() and dataset_number(name) != int(dataset):
            raise ValueError  # nnU-Net takes 1234 for 123
        return name
    except (RuntimeError, ValueError) as error:
        if "More than one" in str(error):
            raise ValueError(f"More than one dataset has the number {dataset}.") from None
        raise ValueError(f"There is no dataset {dataset} in {raw}.") from None


def read_plans(dataset_name: str, plans_name: str, configuration: str) -> tuple[dict, dict]:
    """Plans and dataset.json of a planned dataset.

    Raises:
        ValueError: nnUNet_preprocessed is not set; the plans do not know the configuration, or
            carry the name of the file that they were copied from.
        FileNotFoundError: the dataset was not planned yet.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name
    file = folder / f"{plans_name}.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{dataset_name} has no plans {file}. Run first: nnUNetv2_plan_and_preprocess "
            f"-d {dataset_number(dataset_name)}"
        )
    plans = read_json(file)
    if plans["plans_name"] != plans_name:  # nnU-Net names the results' folder after it
        raise ValueError(
            f'"plans_name" in {file} is "{plans["plans_name"]}": a training with these plans '
            f'would be taken for one with those. Set it to "{plans_name}".'
        )
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"{file} has no configuration {configuration}, but "
            f"{', '.join(plans['configurations'])}."
        )
    return plans, read_json(folder / "dataset.json")


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """Of a dataset.json, under either key that nnU-Net reads (``determine_num_input_channels``)."""
    return list(dataset["modality"] if "modality" in dataset else dataset["channel_names"])


def label_manager(dataset: Mapping[str, Any]) -> LabelManager:
    """nnU-Net's own for a dataset.json. Where its regions have no order, that in which they are
    written: it matters for predictions alone.

    Raises:
        ValueError: nnU-Net refuses the labels.
    """
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    order = dataset.get("regions_class_order")
    try:
        if order is None:
            foreground = [v for n, v in dataset["labels"].items() if n != "ignore"]
            order = [max(v) for v in map(values_of, foreground) if v != {0}]
        return LabelManager(dict(dataset["labels"]), order)
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
        hint = ""
        if all(str(name).isdecimal() for name in dataset.get("labels") or ["not"]):
            hint = ' They are written as for nnU-Net v1: turn {"1": "name"} round, {"name": 1}.'
        raise ValueError(
            f'nnU-Net refuses "labels" in dataset.json: {one_line(error)}.{hint}'
        ) from error


def values_of(label: Any) -> set[int]:
    """Values that a class in ``"labels"`` of dataset.json stands for: one, or those of a region."""
    return {int(value) for value in (label if isinstance(label, (list, tuple)) else [label])}


def training_cases(dataset: str) -> tuple[str, list[str]]:
    """Name and case identifiers of a dataset in nnUNet_raw, as nnU-Net itself lists them.

    Args:
        dataset: number or full name, e.g. "27" or "Dataset027_ACDC".

    Raises:
        ValueError: nnUNet_raw is not set; no or no unique such dataset; no case in it.
    """
    from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

    raw, name = nnunet_folder("nnUNet_raw"), dataset_name(dataset)
    description = raw / name / "dataset.json"
    if not description.is_file():
        raise ValueError(f"There is no dataset {dataset} in {raw}: {description} is missing.")
    content = read_json(description)
    if "file_ending" not in content:
        raise ValueError(f'{description} has no "file_ending", which nnU-Net needs.')
    if "dataset" in content:  # then the files may lie anywhere
        cases = sorted(content["dataset"])
    else:
        images = raw / name / "imagesTr"
        if not images.is_dir():
            raise ValueError(f"There is no folder {images}.")
        found = get_identifiers_from_splitted_dataset_folder(str(images), content["file_ending"])
        cases = [str(case) for case in found if not case.startswith(".")]  # macOS leaves such
    if not cases:
        raise ValueError(f"{name} has no training case.")
    return name, cases


def split_file(dataset_name: str, make_folder: bool = False) -> Path:
    """Where nnU-Net reads the dataset's split.

    Args:
        dataset_name: full name.
        make_folder: of a dataset that was not planned yet.

    Raises:
        ValueError: nnUNet_preprocessed is not set, or the dataset is not in it yet.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name
    if make_folder:
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        raise ValueError(
            f"{dataset_name} is not preprocessed yet. Run first: nnUNetv2_plan_and_preprocess "
            f"-d {dataset_number(dataset_name)}"
        )
    return folder / "splits_final.json"


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Raises:
        ValueError: the variable is not set.
    """
    from nnunetv2 import paths

    folder = getattr(paths, variable)
    if not folder.is_set():
        raise ValueError(f"The environment variable {variable} is not set; nnU-Net needs it too.")
    return Path(folder)
