"""Classes and values in the labels of labelled and validation cases."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.check.finding import Finding
from nnunetv2_plgcl.datasets.description import label_manager, values_of
from nnunetv2_plgcl.datasets.unlabelled import some


def check_classes(
    labelled: Iterable[str], folder: Path, classes: Mapping[str, Any]
) -> Iterator[Finding]:
    """Classes that no labelled case has.

    Args:
        labelled: cases of the fold's ``"train"``.
        folder: where nnU-Net preprocessed them; it noted there which classes each has.
        classes: ``"labels"`` of dataset.json.
    """
    seen: set[int] = set()
    for case in labelled:
        file = folder / f"{case}.pkl"
        if not file.is_file():
            yield Finding("error", f"Case {case} is labelled but not preprocessed in {folder}.")
            return
        with open(file, "rb") as stream:
            locations = pickle.load(stream)["class_locations"]
        for key, voxels in locations.items():
            if len(voxels) and not (isinstance(key, tuple) and -1 in key):
                seen.update(key if isinstance(key, tuple) else (key,))
    for name, value in classes.items():
        values = values_of(value)
        if name != "ignore" and 0 not in values and not values & seen:
            yield Finding(
                "warning",
                f"No labelled case has {name} ({value}), so it cannot be learned. Label a case "
                f"that has it, or write another split.",
            )


def check_labels(
    found: Mapping[str, Mapping[str, Any]], dataset: Mapping[str, Any]
) -> Iterator[Finding]:
    """Values that dataset.json does not name, and labels that hold background alone.

    Args:
        found: from ``label_values``, of labelled and validation cases.
        dataset: content of dataset.json.

    Raises:
        ValueError: nnU-Net refuses ``"labels"`` of dataset.json.
    """
    labels = label_manager(dataset)
    ignore = set() if labels.ignore_label is None else {labels.ignore_label}
    known = {int(label) for label in labels.all_labels} | ignore
    strange: dict[float, list[str]] = {}
    nothing = []
    for case, of in found.items():
        if "error" in of:
            yield Finding("error", f"The label of case {case} cannot be read. {of['error']}")
            continue
        for value in of["values"]:
            if value not in known:
                strange.setdefault(value, []).append(case)
        if not set(of["values"]) - {0} - ignore:
            nothing.append(case)
    for value, cases in sorted(strange.items()):
        yield Finding(
            "error",
            f"{some(cases)}: {describe_value(value)} in the label, but dataset.json names "
            f'{", ".join(map(str, sorted(known)))}. Correct the label or "labels" in '
            f"dataset.json, and preprocess again.",
        )
    if nothing:
        yield Finding(
            "warning",
            f"{some(nothing)}: no voxel of any class in the label. If it was filled with zeros for "
            f"want of a label, delete it and list the case as unlabelled; else it is learned that "
            f"nothing is there.",
        )


def describe_value(value: float) -> str:
    """A value of a label in words: as many digits as it takes to see what it is."""
    if not math.isfinite(value):
        return f"value {value}"
    if value == int(value):
        return f"value {int(value)}"
    return f"value {value!r}, which is no whole number,"
