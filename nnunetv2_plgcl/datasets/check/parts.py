"""Leaks between the parts of a fold, by the names of cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from nnunetv2_plgcl.datasets.check.finding import PARTS, Finding, Part
from nnunetv2_plgcl.datasets.files import GROUPS
from nnunetv2_plgcl.datasets.groups import (
    EVERY_CASE_ITSELF,
    group_cases,
    group_matching,
    guess_group_pattern,
    left_alone,
    patient_of,
)
from nnunetv2_plgcl.datasets.names import first, some


def check_parts(
    parts: Mapping[Part, Sequence[str]], group_by: str | None = None, noted: str | None = None
) -> Iterator[Finding]:
    """Leaks by name and by patient between the parts of a fold.

    Args:
        parts: cases of each part.
        group_by: what in a case name is the patient; if None, what was noted, else guessed.
        noted: what the split noted as the patient, perhaps of names that have changed since.

    Raises:
        ValueError: the pattern finds nothing in a labelled or validation case.
    """
    for one, other in combinations(PARTS, 2):
        both = sorted(set(parts[one]) & set(parts[other]))
        if both:
            yield Finding("error", f"{some(both)}: both {one} and {other}. Write another split.")
    cases = {case for part in PARTS for case in parts[part]}
    pattern = group_by or noted or guess_group_pattern(sorted(cases))
    in_split = {*parts["labelled"], *parts["validation"]}
    if group_by is None and noted is not None:
        strange = sorted(
            in_split - {c for of in group_matching(in_split, noted).values() for c in of}
        )
        if strange:
            yield Finding(
                "warning",
                f"{some(strange)}: no patient by '{noted}', which {GROUPS} notes beside the split. "
                f"Were they renamed? Write the split again, or remove {GROUPS}.",
            )
        if len(strange) == len(in_split):
            noted, pattern = None, guess_group_pattern(sorted(cases))
    else:
        group_cases(in_split, pattern)
    groups = group_matching(cases, pattern)
    if pattern == EVERY_CASE_ITSELF:
        yield Finding(
            "note",
            "No patient was recognised in the names, so each case counts as one (--group-by).",
        )
    alone = left_alone(cases, pattern)
    if alone:
        yield Finding("note", f"{some(alone)}: no patient recognised, so each counts as one.")
    part_of = {case: part for part in PARTS for case in parts[part]}
    for level, others in (("error", ("labelled", "unlabelled")), ("warning", ("labelled",))):
        against = "validation" if level == "error" else "unlabelled"
        split = [
            group
            for group, members in groups.items()
            if against in (sides := {part_of[m] for m in members}) and sides & set(others)
        ]
        if split:
            said = " or ".join(others)
            yield Finding(
                level,  # type: ignore[arg-type]
                f"Patient {first(split)}: some images are {against}, others "
                f"{said}. Keep a patient on one side: nnUNetv2_plgcl_split, or correct what is "
                f"taken for the patient, '{patient_of(pattern)}', with --group-by.",
                certain=(group_by or noted) is not None,
            )
