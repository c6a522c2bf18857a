"""Classes that labelled cases have."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nnunetv2_plgcl.datasets.check.finding import Finding


def check_classes(
    labelled: Iterable[str], folder: Path, classes: Mapping[str, int | Sequence[int]]
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
        values = set(value) if isinstance(value, (list, tuple)) else {value}
        if name != "ignore" and 0 not in values and not values & seen:
            yield Finding(
                "warning",
                f"No labelled case has {name} ({value}), so it cannot be learned. Label a case "
                f"that has it, or write another split.",
            )
