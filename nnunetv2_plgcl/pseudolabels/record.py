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
    cases = read_object(raw / RECORD, "cases")["cases"]
    if not isinstance(cases, dict) or not all(map(_is_entry, cases.values())):
        raise ValueError(f'{raw / RECORD} is damaged: "cases" does not say what each label is.')
    for case, of in cases.items():
        if not is_name(case):
            raise ValueError(f"{raw / RECORD} is damaged: {case} is no name of a case.")
        label = raw / "labelsTr" / f"{case}{file_ending}"
        if of["kind"] == PSEUDO and label.is_file():
            (unchanged if checksum(label) == of["sha256"] else corrected).append(case)
    return unchanged, corrected


def _is_entry(of: object) -> bool:
    return isinstance(of, dict) and ("sha256" in of if of.get("kind") == PSEUDO else "kind" in of)
