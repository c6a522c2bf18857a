"""Which cases belong to one patient, by their names. Source: ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

EVERY_CASE_ITSELF = r".+"
_SEPARATOR = "_. -"  # between the words of a case name
_WORD = rf"[^{_SEPARATOR}]+"
_DICOM_UID = r"\d+(?:\.\d+){4,}"  # one word, whatever its dots


def guess_group_pattern(cases: Sequence[str]) -> str:
    r"""Guess from the case names which of them belong to one patient.

    The shortest leading part of the names that ends at ``_``, ``-``, ``.`` or a space, contains a
    digit and occurs more than once is taken for the patient; then the same of the names that have
    none, and what is left is left alone. Rather too many cases in a group than two cases of a
    patient on different sides.

    Returns:
        A regular expression for ``group_cases``, e.g. ``patient\d+`` for ``patient001_frame01``,
        with an alternative that matches all of a name where there are names that do not fit, such
        as ``control_1``; ``EVERY_CASE_ITSELF`` if nothing in the names repeats like that.
    """
    patterns = list(_patterns_of_patients(cases))
    if not patterns:
        return EVERY_CASE_ITSELF
    pattern = "|".join(patterns)
    fits_all = all(re.search(pattern, case) for case in cases)
    return pattern if fits_all else f"{pattern}|{_others(pattern)}"


def _patterns_of_patients(cases: Sequence[str]) -> Iterator[str]:
    has_uid = any(re.match(_DICOM_UID, case) for case in cases)
    word = f"(?:{_DICOM_UID}|{_WORD})" if has_uid else _WORD
    for length in range(1, max((len(re.findall(word, case)) for case in cases), default=1)):
        words = f"[{_SEPARATOR}]".join([word] * length)
        leading = {case: match[0] for case in cases if (match := re.match(words, case))}
        fitting = {case: part for case, part in leading.items() if re.search(r"\d", part)}
        if not 1 < len(set(fitting.values())) < len(fitting):
            continue
        # in terms of the names' own letters if they agree
        shapes = {re.sub(r"\d+", lambda _: r"\d+", re.escape(part)) for part in fitting.values()}
        others = [case for case in cases if case not in fitting]
        if len(shapes) == 1:
            yield shapes.pop()
        elif others:  # a digit tells those that fit from them
            yield rf"^(?=(?:{_WORD}[{_SEPARATOR}]){{,{length - 1}}}[^{_SEPARATOR}]*\d){words}"
        else:
            yield words
        yield from _patterns_of_patients(others)
        return


def _others(pattern: str) -> str:
    """Pattern of all of a name in which another one finds nothing."""
    return f"^(?!.*(?:{pattern})).+"


def left_alone(cases: Iterable[str], pattern: str) -> list[str]:
    """Cases that a guessed pattern does not fit, so that each is a group of its own."""
    patient = patient_of(pattern)
    return [] if patient == pattern else sorted(c for c in cases if not re.search(patient, c))


def patient_of(pattern: str) -> str:
    """A guessed pattern without its alternative for names that do not fit."""
    patient, _, others = pattern.partition("|^(?!")
    return patient if others and pattern == f"{patient}|{_others(patient)}" else pattern


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


def group_matching(names: Iterable[str], pattern: str) -> dict[str, list[str]]:
    """``group_cases`` of those names in which the pattern finds something: images without a label
    may be named otherwise."""
    return group_cases([name for name in names if re.search(pattern, name)], pattern)


def describe_groups(groups: Mapping[str, Sequence[str]], pattern: str, guessed: bool) -> str:
    """Say how the cases were grouped, with an example, so that a wrong guess is seen."""
    count = sum(map(len, groups.values()))
    how = f"by '{patient_of(pattern)}'"
    if guessed:
        how += ", guessed from the names (--group-by REGEX corrects it)"
    if len(groups) == count:
        return f"{count} cases, each its own group {how}"
    alone = left_alone([case for members in groups.values() for case in members], pattern)
    others = f"\n  left alone, each its own group: {_first(alone)}" if alone else ""
    group, members = max(groups.items(), key=lambda item: len(item[1]))
    return f"{count} cases in {len(groups)} groups {how}\n  e.g. {group}: {_first(members)}{others}"


def _first(names: Sequence[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
