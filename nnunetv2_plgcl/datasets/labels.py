"""Label files and the values in them. Labels of unlabelled cases must not be asked for.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_plgcl.datasets.cache import read_once
from nnunetv2_plgcl.datasets.integrity import require_whole
from nnunetv2_plgcl.workers import naming, one_line

CACHE = "plgcl_labels.json"
MOST_VALUES = 300  # a file with more is no label


def label_files(
    raw: Path | None, preprocessed: Path, dataset: Mapping[str, Any], cases: Collection[str]
) -> dict[str, Path]:
    """Label file of each case: nnU-Net's copy beside the preprocessed cases, which a training
    belongs to, else that of the raw dataset. Cases without either are left out.

    Args:
        raw: folder of the dataset, None where there is none.
        preprocessed: likewise.
        dataset: content of dataset.json.
        cases: labelled ones and those in validation.
    """
    ending = dataset["file_ending"]
    listed = dataset.get("dataset", {})
    found: dict[str, Path] = {}
    for case in cases:
        places = [preprocessed / "gt_segmentations" / f"{case}{ending}"]
        if raw is not None:
            in_raw = listed.get(case, {}).get("label", f"labelsTr/{case}{ending}")
            places.append(raw / Path(in_raw))  # an absolute path stays as it is
        file = next((place for place in places if place.is_file()), None)
        if file is not None:
            found[case] = file
    return found


def label_values(
    files: Mapping[str, Path], reader: Any, cache: Path, processes: int
) -> dict[str, dict[str, Any]]:
    """Values in each label file under "values", sorted; under "error" why it cannot be read.

    Args:
        files: of each case.
        reader: nnU-Net's reader class of the dataset.
        cache, processes: as for ``read_once``.
    """
    arguments = {case: (file, reader) for case, file in files.items()}
    states = {case: [file] for case, file in files.items()}
    return read_once(read_label, arguments, states, cache, processes, "Reading labels")


def read_label(file: Path, reader: Any) -> dict[str, Any]:
    """See ``label_values``."""
    try:
        require_whole(file)
        with naming(file):
            segmentation, _ = reader().read_seg(str(file))
    except Exception as error:  # a reader may raise anything
        return {"error": one_line(error)}
    values = np.unique(segmentation)
    return {"values": [float(value) for value in values[:MOST_VALUES]]}
