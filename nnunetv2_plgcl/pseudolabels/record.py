"""The JSON file beside pseudo-labels: which labels are true, how sure the others are, and how to
tell that a person has corrected one. Source: ours."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.files import is_name, read_object

RECORD = "plgcl_pseudolabels.json"
PSEUDO, TRUE, CORRECTED = "pseudo", "true", "corrected"
NOTHING = "nothing is predicted"


def checksum(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entry(names: Sequence[str], agreement: Sequence[float], label: Path) -> dict[str, Any]:
    """What is noted of a pseudo-label.

    Args:
        names: of the classes.
        agreement: of each, NaN where it is not predicted.
        label: file of the pseudo-label.
    """
    known = {n: a for n, a in zip(names, agreement, strict=True) if not math.isnan(a)}
    confidence = sum(known.values()) / len(known) if known else 0.0
    worst = min(known, key=lambda name: known[name], default=None)
    return {
        "kind": PSEUDO,
        "sha256": checksum(label),
        "confidence": round(confidence, 4),
        "classes": {name: round(value, 4) for name, value in known.items()},
        "reason": NOTHING if worst is None else f"{worst} is sure by {known[worst]:.2f} only",
    }


def ranked(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Pseudo-labelled cases, the least sure first."""
    pseudo = [case for case, of in cases.items() if of["kind"] == PSEUDO]
    return sorted(pseudo, key=lambda case: (cases[case]["confidence"], case))


def describe_ranking(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each pseudo-labelled case: which a person should label next, and why."""
    lines = []
    for place, case in enumerate(ranked(cases), start=1):
        of = cases[case]
        lines.append(f"{place:4}  {case}  confidence {of['confidence']:.3f}, {of['reason']}")
    return lines


def pseudo_labels(raw: Path, file_ending: str) -> tuple[list[str], list[str]]:
    """Cases of a raw dataset whose labels were predicted, by ``RECORD``.

    Returns:
        Those whose file is still as it was written, and those that a person has changed since.
        None of either without such a record.
    """
    if not (raw / RECORD).is_file():
        return [], []
    unchanged: list[str] = []
    corrected: list[str] = []
    for case, of in read_record(raw / RECORD)["cases"].items():
        label = raw / "labelsTr" / f"{case}{file_ending}"
        if not label.is_file():
            continue
        if of["kind"] == CORRECTED or (of["kind"] == PSEUDO and checksum(label) != of["sha256"]):
            corrected.append(case)
        elif of["kind"] == PSEUDO:
            unchanged.append(case)
    return unchanged, corrected


def read_record(file: Path) -> dict[str, Any]:
    """Content of a ``RECORD``, with what each of its cases is.

    Raises:
        ValueError: it is damaged.
    """
    record = read_object(file, "cases")
    cases = record["cases"]
    if not isinstance(cases, dict) or not all(map(_is_entry, cases.values())):
        raise ValueError(f'{file} is damaged: "cases" does not say what each label is.')
    strange = [case for case in cases if not is_name(case)]
    if strange:
        raise ValueError(f"{file} is damaged: {strange[0]} is no name of a case.")
    return record


def _is_entry(of: object) -> bool:
    if not isinstance(of, dict) or of.get("kind") not in (TRUE, PSEUDO, CORRECTED):
        return False
    if of["kind"] == TRUE:
        return True
    number = (int, float)
    types: dict[str, Any] = {"sha256": str, "confidence": number, "classes": dict, "reason": str}
    return all(isinstance(of.get(key), type_) for key, type_ in types.items()) and all(
        isinstance(value, number) for value in of["classes"].values()
    )
