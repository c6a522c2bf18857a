"""Labelled / unlabelled / validation split by patient, for nnU-Net's splits_final.json.

A split is a list of folds ``{"train": [...], "val": [...], "unlabelled": [...]}``. ``"train"``
holds the labelled cases alone, and plain nnU-Net ignores the third key, so ``nnUNetTrainer`` on
the same fold is the fair baseline. Source: ours.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from nnunetv2_plgcl.datasets.groups import group_cases, guess_group_pattern

Amount = int | float | Sequence[str]
"""How much of a split's part: an int counts groups, a float below 1 is a fraction of the groups,
a sequence of str names groups or cases (a case stands for its whole group)."""


def parse_amount(words: Sequence[str]) -> Amount:
    """Read an amount from the command line.

    One number with a decimal point is a fraction (``0.1``; ``1.0`` means all), one without is a
    number of groups (``1`` means one); anything else is names of groups or cases, also a number
    that begins with a zero (``001``).
    """
    if len(words) == 1 and re.fullmatch(r"0|[1-9]\d*", words[0]):
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
    without_label: Collection[str] = (),
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
        without_label: cases that are never drawn as labelled or for validation, but unlabelled in
            each fold; those of its validation groups are in no part of it.

    Returns:
        One dict per fold with sorted case lists under "train" (labelled), "val", "unlabelled".

    Raises:
        ValueError: a part would be empty; more groups wanted than there are; an unknown name
            (with the nearest known one); a group in two parts; more folds than different sets.
    """
    cases = list(cases)
    pattern = guess_group_pattern(cases) if group_by is None else group_by
    group_of = {case: group for group, of in group_cases(cases, pattern).items() for case in of}
    groups = group_cases(set(cases) - set(without_label), pattern)
    if folds < 1:
        raise ValueError(f"The number of folds must be at least 1, not {folds}.")
    if seed < 0:
        raise ValueError(f"The seed must not be negative, but is {seed}.")
    for name in (*(() if isinstance(labelled, int | float) else labelled),
                 *(() if isinstance(val, int | float) else val)):  # fmt: skip
        if name in without_label or (name in group_of.values() and name not in groups):
            raise ValueError(f"{name} has no true label, so it cannot be labelled or validate.")
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
        size = _count(labelled, len(rest[0]), len(rest[0]), "labelled", 0 if without_label else 1)
        if named_val:
            labelled_sets = _draw(rest[0], size, folds, rng)
        else:
            labelled_sets = [_draw(free, size, 1, rng)[0] for free in rest]
    else:
        labelled_sets = [named_labelled] * folds

    splits = []
    for chosen_val, chosen_labelled in zip(val_sets, labelled_sets, strict=True):
        unlabelled = _without(groups, [*chosen_val, *chosen_labelled])
        more = [case for case in without_label if group_of[case] not in chosen_val]
        if not unlabelled and not more:
            raise ValueError(
                f"Nothing is left unlabelled: {len(chosen_labelled)} labelled and "
                f"{len(chosen_val)} validation groups are all {len(groups)} groups."
            )
        parts = {"train": chosen_labelled, "val": chosen_val, "unlabelled": unlabelled}
        fold = {part: [c for g in chosen for c in groups[g]] for part, chosen in parts.items()}
        fold["unlabelled"] += more
        splits.append({part: sorted(members) for part, members in fold.items()})
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


def _count(amount: int | float, total: int, available: int, part: str, left: int = 1) -> int:
    """Number of groups that the amount means, where some of the available ones must be left."""
    if isinstance(amount, float) and not 0 < amount < 1:
        raise ValueError(
            f"A fraction of {part} groups must lie between 0 and 1, both excluded, but is "
            f"{amount}. Write a number of groups without decimal point."
        )
    count = math.floor(amount * total + 0.5) if isinstance(amount, float) else amount
    if count < 1:
        of = f" ({amount} of {total} groups)" if isinstance(amount, float) else ""
        raise ValueError(f"At least one {part} group is needed, not {count}{of}.")
    if count > available - left:
        raise ValueError(
            f"{count} {part} groups are wanted, but of {available} groups to choose from at "
            f"least {left} must be left."
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


def describe_fold(fold: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]]) -> str:
    """Count cases and groups of each part of a fold."""
    parts = {"labelled": "train", "unlabelled": "unlabelled", "validation": "val"}
    group_of = {case: group for group, members in groups.items() for case in members}
    counts = []
    for name, key in parts.items():
        inside = len({group_of[case] for case in fold[key]})
        counts.append(f"{name} {len(fold[key])} cases of {inside} groups")
    return ", ".join(counts)


def describe_numbers(
    labelled: Sequence[str], val: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """One sentence for each number of groups that is the name of a case or group, too."""
    known = {*groups, *(case for members in groups.values() for case in members)}
    return [
        f"{words[0]} is taken for a number of {part} groups, not for the name {words[0]}."
        for part, words in (("labelled", labelled), ("validation", val))
        if isinstance(parse_amount(words), int) and words[0] in known
    ]


def describe_pulled(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence for each named case that brings further, unnamed cases of its group along."""
    sentences = []
    for group, members in groups.items():
        named = sorted(set(names) & set(members))
        further = sorted(set(members) - set(names))
        if group not in names and named and further:
            sentences.append(f"{named[0]} brings the rest of {group}: {', '.join(further)}")
    return sentences
