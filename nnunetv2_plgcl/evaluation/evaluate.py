"""DSC, HD95, ASD and ASSD of a folder of predictions, in the shape of nnU-Net's summary.json.

The overlap is nnU-Net's own (``compute_metrics``): Dice, IoU and counts, with regions and the
ignore label as there. The distances are ours, see ``metrics``. Source: ours.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import (
    compute_metrics,
    label_or_region_to_key,
    region_or_label_to_mask,
)
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_plgcl.evaluation.metrics import surface_distances
from nnunetv2_plgcl.workers import describe_failures, run_all

DISTANCES = ("HD95", "ASSD", "ASD")
REPORTED = ("Dice", *DISTANCES)
GEOMETRY_TOLERANCE = 1e-3  # mm, and for directions
EMPTY = ("prediction", "reference", "both")

Region = int | tuple[int, ...]


def evaluate_case(
    reference_file: str,
    prediction_file: str,
    reader: Any,
    regions: Sequence[Region],
    ignore_label: int | None,
    known_labels: Sequence[int],
    voxel: bool,
) -> dict[str, Any]:
    """Metrics of one case.

    Where the prediction or the reference of a class is empty there are no distances: they are
    NaN, and ``empty`` says which of the two it is.

    Args:
        reference_file, prediction_file: of the case.
        reader: nnU-Net's reader class for them.
        regions: labels, or tuples of labels that belong together.
        ignore_label: voxels of the reference that do not count, as in nnU-Net; for the distances
            both masks end where they begin.
        known_labels: that dataset.json names.
        voxel: distances in voxels instead of mm.

    Returns:
        What ``compute_metrics`` returns, with ``DISTANCES`` and "empty" for each class.

    Raises:
        ValueError: shapes or geometries differ, or a file has an unknown label.
    """
    reference, of_reference = reader().read_seg(reference_file)
    prediction, of_prediction = reader().read_seg(prediction_file)
    if reference.shape != prediction.shape:
        raise ValueError(
            f"{prediction_file} has shape {prediction.shape[1:]}, its reference "
            f"{reference.shape[1:]}."
        )
    _require_same_geometry(of_prediction, of_reference, prediction_file)
    spacing = of_reference["spacing"]
    ignored = set() if ignore_label is None else {ignore_label}
    _require_known_labels(prediction, set(known_labels), prediction_file)
    _require_known_labels(reference, set(known_labels) | ignored, reference_file)
    result: dict[str, Any] = compute_metrics(
        reference_file, prediction_file, reader(), regions, ignore_label
    )
    counts = np.ones(reference.shape[1:], bool)
    if ignore_label is not None:
        counts = reference[0] != ignore_label
    for region, metrics in result["metrics"].items():
        of_prediction, of_reference = (
            region_or_label_to_mask(segmentation[0], region) & counts
            for segmentation in (prediction, reference)
        )
        metrics.update(_distances(of_prediction, of_reference, None if voxel else spacing))
    return result


def _require_same_geometry(prediction: Mapping, reference: Mapping, file: str) -> None:
    of_both = [
        {"spacing": of["spacing"], **of.get("sitk_stuff", {}), **of.get("nibabel_stuff", {})}
        for of in (prediction, reference)
    ]
    for what in ("spacing", "origin", "direction", "original_affine"):
        if what not in of_both[0] or what not in of_both[1]:
            continue
        there, wanted = (np.array(of[what], float) for of in of_both)
        if there.shape != wanted.shape or not np.allclose(there, wanted, atol=GEOMETRY_TOLERANCE):
            raise ValueError(
                f"{file} has {what.replace('_', ' ')} {there.tolist()}, its reference "
                f"{wanted.tolist()}."
            )


def _require_known_labels(segmentation: np.ndarray, known: set[int], file: str) -> None:
    unknown = [value for value in np.unique(segmentation).tolist() if value not in known]
    if unknown:
        raise ValueError(f"{file} has label {unknown[0]:g}, unknown to dataset.json.")


def _distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None
) -> dict[str, Any]:
    there = bool(prediction.any()), bool(reference.any())
    if there != (True, True):
        empty = {(False, True): "prediction", (True, False): "reference"}.get(there, "both")
        return {**dict.fromkeys(DISTANCES, math.nan), "empty": empty}
    found = surface_distances(prediction, reference, spacing)
    return {"HD95": found.hd95(), "ASSD": found.assd(), "ASD": found.asd(), "empty": None}


def evaluate_folder(
    reference_folder: Path,
    prediction_folder: Path,
    dataset: Mapping[str, Any],
    *,
    cases: Sequence[str] | None = None,
    voxel: bool = False,
    processes: int = 4,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Metrics of every case of a folder.

    Args:
        reference_folder: with a file of the same name for each prediction.
        prediction_folder: of predictions.
        dataset: content of dataset.json.
        cases: names of the cases to evaluate, others in the folders do not matter; None for all.
        voxel: distances in voxels instead of mm.
        processes: worker processes.
        show_progress: a bar on stderr.

    Returns:
        As nnU-Net's summary.json, with more metrics; beside "mean" also "std" and "empty", which
        counts the cases without distances for each class. Means leave those out.

    Raises:
        ValueError: the folders do not match, or no case is there.
        RuntimeError: cases that could not be evaluated, with their files' names.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    for key in ("file_ending", "labels"):
        if key not in dataset:
            raise ValueError(f'There is no "{key}" in what was given as dataset.json.')
    ending = dataset["file_ending"]
    names = {
        folder: {file.name for file in folder.iterdir() if file.name.endswith(ending)}
        if folder.is_dir()
        else set()
        for folder in (reference_folder, prediction_folder)
    }
    for folder, found in names.items():
        if not found:
            raise ValueError(f"There is no file *{ending} in {folder}.")
    wanted = set().union(*names.values()) if cases is None else {case + ending for case in cases}
    for folder, found in names.items():
        missing = sorted(wanted - found)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(f"{folder} lacks {', '.join(missing[:3])}{more}.")
    labels = _labels(dataset)
    regions = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    files = sorted(wanted)
    reader = determine_reader_writer_from_dataset_json(
        dict(dataset), str(reference_folder / files[0]), verbose=False
    )
    arguments = {
        file: (
            str(reference_folder / file),
            str(prediction_folder / file),
            reader,
            list(regions),
            labels.ignore_label,
            [int(label) for label in labels.all_labels],
            voxel,
        )
        for file in files
    }
    results: dict[str, dict] = {}
    failures = run_all(
        evaluate_case, arguments, processes, "Evaluating", show_progress, results=results
    )
    if failures:
        raise RuntimeError(describe_failures(failures, len(files)))
    summary = summarise([results[file] for file in files], list(regions))
    return {**summary, "unit": "voxels" if voxel else "mm"}


def class_names(dataset: Mapping[str, Any]) -> list[str]:
    """Of the classes, in the order of a summary."""
    labels = _labels(dataset)
    foreground = {n: v for n, v in labels.label_dict.items() if n != "ignore" and v != 0}
    if labels.has_regions:
        return list(foreground)
    return sorted(foreground, key=lambda name: foreground[name])


def _labels(dataset: Mapping[str, Any]) -> LabelManager:
    return LabelManager(dataset["labels"], dataset.get("regions_class_order"))


def summarise(cases: list[dict[str, Any]], regions: Sequence[Region]) -> dict[str, Any]:
    """Means and standard deviations over cases, for each class and over the classes.

    Args:
        cases: from ``evaluate_case``.
        regions: the classes.
    """
    names = [name for name in cases[0]["metrics"][regions[0]] if name != "empty"]
    values = {
        region: {
            name: np.array([c["metrics"][region][name] for c in cases], float) for name in names
        }
        for region in regions
    }
    means = {r: {n: _over(np.nanmean, v) for n, v in of.items()} for r, of in values.items()}
    stds = {r: {n: _over(np.nanstd, v) for n, v in of.items()} for r, of in values.items()}
    foreground = {n: _over(np.nanmean, np.array([means[r][n] for r in regions])) for n in names}
    empty = {
        r: {e: sum(c["metrics"][r]["empty"] == e for c in cases) for e in EMPTY} for r in regions
    }
    for case in cases:
        recursive_fix_for_json_export(case)
    return {
        "metric_per_case": [{**case, "metrics": _by_key(case["metrics"])} for case in cases],
        "mean": _by_key(means),
        "std": _by_key(stds),
        "foreground_mean": foreground,
        "empty": _by_key(empty),
    }


def _over(function: Any, values: np.ndarray) -> float:
    """Of the values that are numbers; NaN without one, and no warning."""
    return float(function(values)) if not np.isnan(values).all() else math.nan


def _by_key(by_region: Mapping[Region, Any]) -> dict[str, Any]:
    return {label_or_region_to_key(region): value for region, value in by_region.items()}


def write_json(summary: Mapping[str, Any], file: Path) -> None:
    """Write what ``evaluate_folder`` returns, as nnU-Net writes its summary.json."""
    file.write_text(json.dumps(summary, indent=4, sort_keys=True))


def write_csv(summary: Mapping[str, Any], file: Path) -> None:
    """One row for each case, class and metric; an empty cell where there is no distance, and for
    the unit of what has none."""
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("case", "class", "metric", "value", "unit"))
        for case in summary["metric_per_case"]:
            name = Path(case["prediction_file"]).name
            for region, metrics in case["metrics"].items():
                for metric in REPORTED:
                    value = "" if math.isnan(metrics[metric]) else metrics[metric]
                    unit = summary["unit"] if metric in DISTANCES else ""
                    writer.writerow((name, region, metric, value, unit))


def table(summary: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Mean and standard deviation for each class, and how many cases have no distances.

    Args:
        summary: from ``evaluate_folder``.
        class_names: in its order of classes.
    """
    distances = [f"{name} ({summary['unit']})" for name in DISTANCES]
    head = ["class", "DSC", *distances, "empty prediction",
            "empty reference", "both empty"]  # fmt: skip
    rows = [head]
    for name, key in zip(class_names, summary["mean"], strict=True):
        mean, std, empty = (summary[part][key] for part in ("mean", "std", "empty"))
        scores = [f"{mean[m]:.4f} ± {std[m]:.4f}" for m in REPORTED]
        rows.append([name, *scores, *(str(empty[e]) for e in EMPTY)])
    foreground = [f"{summary['foreground_mean'][m]:.4f}" for m in REPORTED]
    totals = [str(sum(of[e] for of in summary["empty"].values())) for e in EMPTY]
    rows.append(["mean", *foreground, *totals])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
