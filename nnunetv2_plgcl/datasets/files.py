"""Files of nnU-Net's datasets that we read and write: where they lie and what they hold.

Source: ours.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nnunetv2_plgcl.datasets.groups import EVERY_CASE_ITSELF

PARTS = ("train", "val", "unlabelled")  # of a fold; any other key is passed over
GROUPS = "plgcl_groups.json"  # beside splits_final.json
UNFINISHED = ".tmp"  # ending of what is being written

_count = itertools.count()


def read_json(file: Path, unique_keys: bool = False) -> Any:
    """
    Args:
        file: to be read.
        unique_keys: refuse an object with one key twice, of which JSON readers take the last.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, with its name; a key stands twice.
    """
    hook = _require_unique if unique_keys else None
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, it is not JSON: {error}") from None


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    twice = {key for key in content if [name for name, _ in pairs].count(key) > 1}
    if twice:
        raise ValueError(f'"{min(twice)}" stands twice in one object, remove one.')
    return content


def read_object(file: Path, *keys: str) -> dict[str, Any]:
    """An object of a JSON file.

    Args:
        file: of ours or nnU-Net's.
        keys: that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, no object, or lacks a key.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {_kind(content)}, where an object {{...}} belongs.")
    for key in keys:
        if key not in content:
            raise ValueError(f'{file} has no "{key}".')
    return content


def _kind(content: object) -> str:
    """In JSON's words."""
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(content), "a number")


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A stream to a temporary file beside ``file``, which becomes it once it is whole on the disk.

    Whatever interrupts it, ``file`` is either the old one or the new one. Each temporary file has
    its own name: another process, or a signal, may begin another one meanwhile.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}_{next(_count)}{UNFINISHED}")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, content: object) -> None:
    """Write in one step, so that no reader ever sees half of it."""
    with replacing(file) as stream:
        stream.write(json.dumps(content, indent=4).encode())


def states_of(files: Iterable[Path]) -> list[list]:
    """Name, size and time of each file: other ones where a file was replaced or is gone."""
    return [[str(file), *_size_and_time(file)] for file in files]


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def read_split(file: Path, fold: int | str | None = None) -> list[dict[str, list[str]]]:
    """What a ``splits_final.json`` holds; nothing where there is no file.

    Args:
        file: of a dataset.
        fold: that is wanted, by number or ``"all"``: the others may be wrong, as nnU-Net does not
            read them. None for all of them.

    Raises:
        ValueError: it is damaged, no list of folds with lists of cases, a case is a path, or a part
            of a fold has another name, such as "unlabeled", that plain reading would pass over.
    """
    if not file.is_file():
        return []
    split = read_json(file, unique_keys=True)
    if not isinstance(split, list) or not all(isinstance(of, dict) for of in split):
        raise ValueError(
            f"{file} is no list of folds such as "
            f'[{{"train": [...], "val": [...], "unlabelled": [...]}}].'
        )
    if not split:  # with which nnU-Net would draw 80:20, and write nothing down
        raise ValueError(f"{file} holds no fold. Remove it, or write a split.")
    for number, parts in enumerate(split):
        if fold is None or fold == number:
            _require_fold(parts, f"fold {number}", file)
    return split


def _require_fold(parts: dict[str, Any], name: str, file: Path) -> None:
    for key in set(parts) - set(PARTS):
        if not is_text(key):
            raise ValueError(f"{file}: a key of {name}, {key!r}, is no text.")
        meant = _part_like(key)
        if meant == "unlabelled" or (meant and meant not in parts):
            raise ValueError(f'{file}: {name} has "{key}". Is "{meant}" meant?')
    for part in PARTS:
        cases = parts.get(part, [] if part == "unlabelled" else None)
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise ValueError(f'{file}: "{part}" of {name} is no list of case names.')
        for case in cases:
            if not is_name(case):
                raise ValueError(
                    f'{file}: "{case}" in "{part}" of {name} is no case name, but a path. Write '
                    f"the name alone, without folder, channel and file ending."
                )
            if not is_text(case):
                raise ValueError(f'{file}: {case!r} in "{part}" of {name} is no text.')


def is_name(text: object) -> bool:
    """Whether what a file says is the name of a case or folder, and no path to elsewhere."""
    return isinstance(text, str) and not re.search(r"[/\\]", text) and text not in ("", ".", "..")


def is_text(name: str) -> bool:
    """Whether a name can be written down: not bytes of another encoding than UTF-8, as file systems
    allow them, nor half a character, as JSON does."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


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
    if word.startswith("label"):
        return "train"
    near = difflib.get_close_matches(word, [*PARTS, "validation", "training"], n=1, cutoff=0.7)
    if "unlab" in word or near == ["unlabelled"]:
        return "unlabelled"
    return {"validation": "val", "training": "train"}.get(near[0], near[0]) if near else None


def read_group_pattern(preprocessed: Path) -> str | None:
    """What ``write_group_pattern`` noted beside a split; None where nothing was."""
    file = preprocessed / GROUPS
    if not file.is_file():
        return None
    pattern = read_object(file, "group_by")["group_by"]
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f'"group_by" in {file} is no regular expression: {error}. Write the split again, or '
            f"remove the file."
        ) from None
    return str(pattern)


def write_group_pattern(preprocessed: Path, pattern: str) -> None:
    """Note what in a case name is the patient, for the check before a training.

    Nothing is noted where each case is a group of its own."""
    if pattern == EVERY_CASE_ITSELF:
        (preprocessed / GROUPS).unlink(missing_ok=True)
    else:
        write_json(preprocessed / GROUPS, {"group_by": pattern})


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
    write_json(file, split)
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
    """Full name of a dataset in one of nnU-Net's folders; not all of them need be set.

    Args:
        dataset: number or full name, e.g. "27" or "Dataset027_ACDC".

    Raises:
        ValueError: no or no unique such dataset in the folders that are set.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    folders = _folders_of_datasets()
    if not folders:
        nnunet_folder("nnUNet_raw")  # nothing is set
    try:
        name = str(maybe_convert_to_dataset_name(dataset))
        if dataset.isdecimal() and dataset_number(name) != int(dataset):
            raise ValueError  # nnU-Net takes 1234 for 123
        if not any((folder / name).is_dir() for folder in folders):
            raise ValueError  # nnU-Net believes a full name
        return name
    except (RuntimeError, ValueError) as error:
        if "More than one" in str(error):
            raise ValueError(f"More than one dataset has the number {dataset}.") from None
        where = " or ".join(map(str, folders))
        raise ValueError(f"There is no dataset {dataset} in {where}.") from None


def _folders_of_datasets() -> list[Path]:
    from nnunetv2 import paths

    folders = (paths.nnUNet_raw, paths.nnUNet_preprocessed, paths.nnUNet_results)
    return [Path(folder) for folder in folders if folder.is_set()]


def split_file(dataset_name: str) -> Path:
    """Where nnU-Net reads the split of the dataset of this full name.

    Raises:
        ValueError: nnUNet_preprocessed is not set.
    """
    return nnunet_folder("nnUNet_preprocessed") / dataset_name / "splits_final.json"


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
