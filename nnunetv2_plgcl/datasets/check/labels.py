"""Classes and values in the labels of labelled and validation cases."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from nnunetv2_plgcl.datasets.check.finding import Finding
from nnunetv2_plgcl.datasets.description import label_manager, values_of
from nnunetv2_plgcl.datasets.names import some


def check_classes(
    labelled: Collection[str],
    properties: Mapping[str, Mapping[str, Any]],
    classes: Mapping[str, Any],
    mend: str,
) -> Iterator[Finding]:
    """Classes that no labelled case has, and cases of which nnU-Net's notes are lost.

    Args:
        labelled: cases of the fold's ``"train"``.
        properties: of them and of validation cases, from ``read_properties``.
        classes: ``"labels"`` of dataset.json.
        mend: what to do about files that are missing or damaged.
    """
    damaged = [case for case, of in properties.items() if "error" in of]
    if damaged:
        yield Finding("error", f"{some(damaged)}: {properties[damaged[0]]['error']} {mend}")
    if set(damaged) & set(labelled):
        return
    seen = {value for case in labelled if case in properties for value in properties[case]["seen"]}
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
    """Values that dataset.json does not name or names twice, and labels of background alone.

    Args:
        found: from ``label_values``, of labelled and validation cases.
        dataset: content of dataset.json.

    Raises:
        ValueError: nnU-Net refuses ``"labels"`` of dataset.json.
    """
    labels = label_manager(dataset)
    ignore = set() if labels.ignore_label is None else {labels.ignore_label}
    known = {int(label) for label in labels.all_labels} | ignore
    yield from _names_and_order(dataset)
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


def _names_and_order(dataset: Mapping[str, Any]) -> Iterator[Finding]:
    names: dict[frozenset[int], list[str]] = {}
    for name, value in dataset["labels"].items():
        names.setdefault(frozenset(values_of(value)), []).append(name)
    for values, same in names.items():
        if len(same) > 1:
            text = f'"labels" of dataset.json names {sorted(values)} {" and ".join(same)}.'
            yield Finding("warning", f"{text} Is one of them another value?")
    known = set().union(*names)
    strange = [v for v in dataset.get("regions_class_order") or () if int(v) not in known]
    if strange:
        yield Finding(
            "warning",
            f'"regions_class_order" of dataset.json has {strange[0]}, which "labels" does not: '
            f"predictions would hold a value that no label has.",
        )


def describe_value(value: float) -> str:
    """A value of a label in words: as many digits as it takes to see what it is."""
    if not math.isfinite(value):
        return f"value {value}"
    if value == int(value):
        return f"value {int(value)}"
    return f"value {value!r}, which is no whole number,"
