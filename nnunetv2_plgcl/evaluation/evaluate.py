"""DSC, HD95, ASD and ASSD of a folder of predictions, in the shape of nnU-Net's summary.json.

The overlap is nnU-Net's own (``compute_metrics``): Dice, IoU and counts, with regions and the
ignore label as there. The distances are ours, see ``metrics``. Source: ours.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Mapping, Sequence
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

from nnunetv2_plgcl.datasets.description import label_manager
from nnunetv2_plgcl.datasets.names import first, some
from nnunetv2_plgcl.datasets.raw import require_text
from nnunetv2_plgcl.evaluation.geometry import (
    TOLERANCE,
    displacement,
    distance_unit,
    has_spacing,
    some_have_spacing,
)
from nnunetv2_plgcl.evaluation.metrics import surface_distances
from nnunetv2_plgcl.workers import describe_failures, run_all

DISTANCES = ("HD95", "ASSD", "ASD")
REPORTED = ("Dice", *DISTANCES)
DISPLACED = "displacement in voxels"  # of a case in a summary
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
        What ``compute_metrics`` returns, with ``DISTANCES`` and "empty" for each class, and
        ``DISPLACED``.

    Raises:
        ValueError: shapes differ, or a file has an unknown label.
    """
    reference, of_reference = reader().read_seg(reference_file)
    prediction, of_prediction = reader().read_seg(prediction_file)
    require_segmentation(reference, known_labels, ignore_label, reference_file)
    require_segmentation(prediction, known_labels, None, prediction_file)
    if reference.shape != prediction.shape:
        raise ValueError(
            f"{prediction_file} has shape {prediction.shape[1:]}, its reference "
            f"{reference.shape[1:]}."
        )
    known = [has_spacing(reader, file) for file in (reference_file, prediction_file)]
    spacing = (of_reference if known[0] else of_prediction)["spacing"]
    result: dict[str, Any] = compute_metrics(
        reference_file, prediction_file, reader(), regions, ignore_label
    )
    result[DISPLACED] = (
        displacement(of_prediction, of_reference, reference.shape[1:]) if all(known) else 0.0
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


def require_same_cases(
    cases: Collection[str], folder: Path, others: Collection[str], other_folder: Path
) -> None:
    """Refuse folders that do not hold the same cases.

    Raises:
        ValueError: which case, and where it is missing.
    """
    for here, there, where, missing in (
        (set(cases), set(others), folder, other_folder),
        (set(others), set(cases), other_folder, folder),
    ):
        if here - there:
            raise ValueError(f"{some(sorted(here - there))} of {where}: no such file in {missing}.")


def require_segmentation(
    segmentation: np.ndarray, known_labels: Sequence[int], ignore_label: int | None, file: str
) -> None:
    """Refuse what is no segmentation with the labels of dataset.json.

    Args:
        segmentation: (C, Z, Y, X), as nnU-Net's readers return it.
        known_labels: that dataset.json names.
        ignore_label: that counts as known; None for none.
        file: to be named.

    Raises:
        ValueError: more channels than one, or an unknown label.
    """
    if len(segmentation) != 1:
        raise ValueError(f"{file} has {len(segmentation)} channels; a segmentation has one.")
    unknown = set(np.unique(segmentation)) - {*known_labels, ignore_label}
    if unknown:
        value = str(min(unknown)).removesuffix(".0")
        raise ValueError(f"{file} has label {value}, unknown to dataset.json.")


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
    labels = label_manager(dataset)
    ending = dataset["file_ending"]
    names = {
        folder: {file.name for file in folder.glob(f"[!.]*{ending}")}  # macOS leaves ._ files
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
            raise ValueError(f"{folder} lacks {first(missing)}.")
    files = sorted(wanted)
    for file in files:
        require_text(file, reference_folder)
    reader = determine_reader_writer_from_dataset_json(
        dict(dataset), str(reference_folder / files[0]), verbose=False
    )
    pairs = [(reference_folder / file, prediction_folder / file) for file in files]
    unit = distance_unit(reader, pairs, voxel)
    arguments = {
        reference.name: (
            str(reference),
            str(prediction),
            reader,
            regions_of(labels),
            labels.ignore_label,
            [int(label) for label in labels.all_labels],
            unit != "mm",
        )
        for reference, prediction in pairs
    }
    results: dict[str, dict] = {}
    failures = run_all(
        evaluate_case, arguments, processes, "Evaluating", show_progress, results=results
    )
    if failures:
        raise RuntimeError(describe_failures(failures, len(files)))
    summary = summarise([results[file] for file in files], regions_of(labels))
    warnings = displaced(summary)
    if not voxel and unit != "mm" and some_have_spacing(reader, pairs):
        warnings.append(f"Some files have no spacing, so all distances are in {unit}.")
    return {**summary, "unit": unit, "warnings": warnings}


def displaced(summary: Mapping[str, Any]) -> list[str]:
    """Says in one sentence which predictions lie beside their reference; nothing if none does."""
    cases = [case for case in summary["metric_per_case"] if case[DISPLACED] > TOLERANCE]
    if not cases:
        return []
    worst = max(cases, key=lambda case: case[DISPLACED])
    return [
        f"Headers of predictions ({len(cases)}) place voxels elsewhere than those of their "
        f"references, {worst['prediction_file']} by up to {worst[DISPLACED]:.3g} voxels (lengths "
        f"of their shortest edge). Voxels of equal index were compared."
    ]


def regions_of(labels: LabelManager) -> list[Region]:
    """The classes: labels, or regions of several labels."""
    if not labels.has_regions:
        return list(labels.foreground_labels)
    regions = labels.foreground_regions
    return [tuple(map(int, r)) if isinstance(r, tuple) else int(r) for r in regions]


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
