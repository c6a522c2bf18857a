"""Labelled / unlabelled / validation split by patient, written as nnU-Net's splits_final.json.

A split is a list of folds ``{"train": [...], "val": [...], "unlabelled": [...]}``. ``"train"``
holds the labelled cases alone, and plain nnU-Net ignores the third key, so ``nnUNetTrainer`` on
the same fold is the fair baseline. Source: ours.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Amount = int | float | Sequence[str]
"""How much of a split's part: an int counts groups, a float below 1 is a fraction of the groups,
a sequence of str names groups or cases (a case stands for its whole group)."""

EVERY_CASE_ITSELF = r".+"
GROUPS = "plgcl_groups.json"  # beside splits_final.json
_SEPARATOR = "_.-"  # between the parts of a case name


def guess_group_pattern(cases: Sequence[str]) -> str:
    r"""Guess from the case names which of them belong to one patient.

    The shortest leading part of the names that ends at ``_``, ``-`` or ``.``, contains a digit
    and occurs more than once is taken for the patient. Rather too many cases in a group than two
    cases of a patient on different sides.

    Returns:
        A regular expression for ``group_cases``, e.g. ``patient\d+`` for ``patient001_frame01``;
        ``EVERY_CASE_ITSELF`` if nothing in the names repeats like that.
    """
    words = [re.split(f"[{_SEPARATOR}]", case) for case in cases]
    for length in range(1, max(map(len, words), default=1)):
        pattern = _leading_part(cases, length)
        if not all(re.match(pattern, case) for case in cases):
            continue
        groups = group_cases(cases, pattern)
        if 1 < len(groups) < len(cases) and all(re.search(r"\d", group) for group in groups):
            return pattern
    return EVERY_CASE_ITSELF


def _leading_part(cases: Sequence[str], length: int) -> str:
    """Pattern of the first ``length`` words, in terms of the names' own letters if they agree."""
    word = f"[^{_SEPARATOR}]+"
    generic = f"[{_SEPARATOR}]".join([word] * length)
    found = [re.match(generic, case) for case in cases]
    shapes = {re.sub(r"\d+", lambda _: r"\d+", re.escape(m[0])) for m in found if m}
    return shapes.pop() if len(shapes) == 1 else generic


def group_cases(cases: Iterable[str], pattern: str) -> dict[str, list[str]]:
    """Group cases by what ``pattern`` finds in their names.

    Args:
        cases: case identifiers, in any order.
        pattern: regular expression, searched for in each name. The group is its first pair of
            brackets, or all it matched if it has none.

    Returns:
        Sorted groups, each with its sorted cases.

    Raises:
        ValueError: not a regular expression; it finds nothing in a case (named); a case is
            listed twice.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
    groups: dict[str, list[str]] = {}
    ordered = sorted(cases)
    for previous, case in zip([None, *ordered], ordered, strict=False):
        if case == previous:
            raise ValueError(f"Case {case} is listed twice.")
        match = expression.search(case)
        group = match and match[1 if expression.groups else 0]
        if not group:
            raise ValueError(f"The pattern '{pattern}' finds no group in case {case}.")
        groups.setdefault(group, []).append(case)
    return dict(sorted(groups.items()))


def parse_amount(words: Sequence[str]) -> Amount:
    """Read an amount from the command line.

    One number with a decimal point is a fraction (``0.1``; ``1.0`` means all), one without is a
    number of groups (``1`` means one); anything else is names of groups or cases.
    """
    if len(words) == 1 and re.fullmatch(r"\d+", words[0]):
        return int(words[0])
    if len(words) == 1 and re.fullmatch(r"\d+\.\d*|\.\d+", words[0]):
        return float(words[0])
    return list(words)


def make_split(
    cases: Iterable[str],
    labelled: Amount,
    val: Amount = 0.2,
    *,
    group_by: str | None = None,
    folds: int = 1,
    seed: int = 0,
) -> list[dict[str, list[str]]]:
    """Split cases into labelled, unlabelled and validation parts, whole groups at a time.

    Validation groups are drawn first. The folds' validation sets differ, and are disjoint as far
    as the number of groups allows; with ``val`` given by name all folds share it and their
    labelled groups differ in the same way. The result depends on the set of names and the seed,
    not on the order of names. With everything else equal, the labelled groups of fold 0 contain
    those of a smaller ``labelled``.

    Args:
        cases: all case identifiers.
        labelled: amount of labelled groups; a fraction is of the groups outside validation.
        val: amount of validation groups; a fraction is of all groups.
        group_by: pattern for ``group_cases``; guessed if None.
        folds: number of folds.
        seed: not negative.

    Returns:
        One dict per fold with sorted case lists under "train" (labelled), "val", "unlabelled".

    Raises:
        ValueError: a part would be empty; more groups wanted than there are; an unknown name
            (with the nearest known one); a group in two parts; more folds than different sets.
    """
    cases = list(cases)
    groups = group_cases(cases, guess_group_pattern(cases) if group_by is None else group_by)
    if folds < 1:
        raise ValueError(f"The number of folds must be at least 1, not {folds}.")
    if seed < 0:
        raise ValueError(f"The seed must not be negative, but is {seed}.")
    # an empty list stands for "not given by name": find_groups never returns one
    named_labelled = [] if isinstance(labelled, int | float) else find_groups(labelled, groups)
    named_val = [] if isinstance(val, int | float) else find_groups(val, groups)
    if named_labelled and named_val and folds > 1:
        raise ValueError(
            f"Labelled and validation groups are both given by name, so {folds} folds would be "
            "the same."
        )
    twice = sorted(set(named_labelled) & set(named_val))
    if twice:
        raise ValueError(f"Group {twice[0]} is named both as labelled and for validation.")

    rng = np.random.default_rng(seed)
    if isinstance(val, int | float):
        free = _without(groups, named_labelled)
        val_sets = _draw(free, _count(val, len(groups), len(free), "validation"), folds, rng)
    else:
        val_sets = [named_val] * folds
    rest = [_without(groups, chosen) for chosen in val_sets]
    if isinstance(labelled, int | float):
        size = _count(labelled, len(rest[0]), len(rest[0]), "labelled")
        if named_val:
            labelled_sets = _draw(rest[0], size, folds, rng)
        else:
            labelled_sets = [_draw(free, size, 1, rng)[0] for free in rest]
    else:
        labelled_sets = [named_labelled] * folds

    splits = []
    for chosen_val, chosen_labelled in zip(val_sets, labelled_sets, strict=True):
        unlabelled = _without(groups, [*chosen_val, *chosen_labelled])
        if not unlabelled:
            raise ValueError(
                f"Nothing is left unlabelled: {len(chosen_labelled)} labelled and "
                f"{len(chosen_val)} validation groups are all {len(groups)} groups."
            )
        parts = {"train": chosen_labelled, "val": chosen_val, "unlabelled": unlabelled}
        splits.append(
            {part: sorted(c for g in chosen for c in groups[g]) for part, chosen in parts.items()}
        )
    return splits


def _without(groups: Iterable[str], excluded: Iterable[str]) -> list[str]:
    return sorted(set(groups) - set(excluded))


def find_groups(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The groups that the names mean: of a group itself, or of one of its cases.

    Raises:
        ValueError: no names, or a name of neither a group nor a case; tells the nearest.
    """
    if not names:
        raise ValueError("No name of a group or case is given.")
    group_of = {case: group for group, members in groups.items() for case in members}
    known = {**group_of, **{group: group for group in groups}}
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"There is no group or case {name}. The nearest is {nearest[0]}.")
    return sorted({known[name] for name in names})


def _count(amount: int | float, total: int, available: int, part: str) -> int:
    """Number of groups that the amount means."""
    if isinstance(amount, float) and not 0 < amount < 1:
        raise ValueError(
            f"A fraction of {part} groups must lie between 0 and 1, both excluded, but is "
            f"{amount}. Write a number of groups without decimal point."
        )
    count = math.floor(amount * total + 0.5) if isinstance(amount, float) else amount
    if count < 1:
        of = f" ({amount} of {total} groups)" if isinstance(amount, float) else ""
        raise ValueError(f"At least one {part} group is needed, not {count}{of}.")
    if count >= available:
        raise ValueError(
            f"{count} {part} groups are wanted, but of {available} groups to choose from at "
            "least one must be left."
        )
    return count


def _draw(groups: Sequence[str], size: int, sets: int, rng: np.random.Generator) -> list[list[str]]:
    """Draw different sets of groups; consecutive ones are disjoint until the groups run out."""
    possible = math.comb(len(groups), size)
    if sets > possible:
        raise ValueError(
            f"{sets} folds are wanted, but {size} of {len(groups)} groups can be drawn in "
            f"{possible} ways only."
        )
    drawn: list[list[str]] = []
    while len(drawn) < sets:
        order = rng.permutation(len(groups))
        for start in range(0, len(groups) - size + 1, size):
            chosen = sorted(groups[i] for i in order[start : start + size])
            if chosen not in drawn:
                drawn.append(chosen)
    return drawn[:sets]


def describe_groups(groups: Mapping[str, Sequence[str]], pattern: str, guessed: bool) -> str:
    """Say how the cases were grouped, with an example, so that a wrong guess is seen."""
    count = sum(map(len, groups.values()))
    how = f"by '{pattern}'"
    if guessed:
        how += ", guessed from the names (--group-by REGEX corrects it)"
    if len(groups) == count:
        return f"{count} cases, each its own group {how}"
    group, members = max(groups.items(), key=lambda item: len(item[1]))
    return (
        f"{count} cases in {len(groups)} groups {how}\n"
        f"  e.g. {group}: {', '.join(members[:4])}{', ...' if len(members) > 4 else ''}"
    )


def describe_fold(fold: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]]) -> str:
    """Count cases and groups of each part of a fold."""
    parts = {"labelled": "train", "unlabelled": "unlabelled", "validation": "val"}
    group_of = {case: group for group, members in groups.items() for case in members}
    counts = []
    for name, key in parts.items():
        inside = len({group_of[case] for case in fold[key]})
        counts.append(f"{name} {len(fold[key])} cases of {inside} groups")
    return ", ".join(counts)


def describe_pulled(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence for each named case that brings further, unnamed cases of its group along."""
    sentences = []
    for group, members in groups.items():
        named = sorted(set(names) & set(members))
        further = sorted(set(members) - set(names))
        if group not in names and named and further:
            sentences.append(f"{named[0]} brings the rest of {group}: {', '.join(further)}")
    return sentences


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


def read_split(file: Path) -> list[dict[str, list[str]]]:
    """What a ``splits_final.json`` holds; nothing where there is no file.

    Raises:
        ValueError: it is damaged, or no list of folds with lists of cases.
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
        for part in ("train", "val", "unlabelled"):
            cases = fold.get(part, [] if part == "unlabelled" else None)
            if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
                raise ValueError(f'{file}: "{part}" of fold {number} is no list of case names.')
    return split


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
        return str(maybe_convert_to_dataset_name(dataset))
    except (RuntimeError, ValueError) as error:
        if "More than one" in str(error):
            raise ValueError(f"More than one dataset has the number {dataset}.") from None
        raise ValueError(f"There is no dataset {dataset} in {raw}.") from None


def read_plans(dataset_name: str, plans_name: str, configuration: str) -> tuple[dict, dict]:
    """Plans and dataset.json of a planned dataset.

    Raises:
        ValueError: nnUNet_preprocessed is not set; the plans do not know the configuration.
        FileNotFoundError: the dataset was not planned yet.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name
    file = folder / f"{plans_name}.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{dataset_name} has no plans {file}. Run first: nnUNetv2_plan_and_preprocess "
            f"-d {int(dataset_name[7:10])}"
        )
    plans = read_json(file)
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"{file} has no configuration {configuration}, but "
            f"{', '.join(plans['configurations'])}."
        )
    return plans, read_json(folder / "dataset.json")


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
            f"-d {int(dataset_name[7:10])}"
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
