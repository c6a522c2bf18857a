"""Compare predictions of any origin on the same references, without a training. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_plgcl.datasets.description import class_names
from nnunetv2_plgcl.evaluation.comparison import METRICS, Comparison, one_unit, rows_of
from nnunetv2_plgcl.evaluation.evaluate import evaluate_folder, require_same_cases
from nnunetv2_plgcl.evaluation.figures import box_plot
from nnunetv2_plgcl.evaluation.publish import Published, publish
from nnunetv2_plgcl.evaluation.report import picture_of


def compare_predictions(
    predictions: Mapping[str, Path],
    references: Path,
    dataset: Mapping[str, Any],
    output: Path,
    voxel: bool = False,
    processes: int = 4,
) -> Published:
    """Evaluate folders of predictions and write tables, tests, figures and report.

    Args:
        predictions: name -> folder; the first is what the others are compared with.
        references: folder; each of its files is a case.
        dataset: content of dataset.json.
        output: folder.
        voxel: distances in voxels instead of mm.
        processes: worker processes.

    Raises:
        ValueError: no references; a folder lacks a case or has others; bad labels.
        RuntimeError: a file cannot be evaluated.
    """
    if "file_ending" not in dataset:
        raise ValueError('There is no "file_ending" in what was given as dataset.json.')
    classes = tuple(class_names(dataset))
    cases = cases_of(references, dataset)
    for folder in predictions.values():
        require_same_cases(cases_of(folder, dataset), folder, cases, references)
    output.mkdir(parents=True, exist_ok=True)  # before hours, that it can be written
    rows, units, warnings = [], set(), []
    for name, folder in predictions.items():
        summary = evaluate_folder(references, folder, dataset, voxel=voxel, processes=processes)
        rows += rows_of(
            summary, dataset, trainer=name, labelled=0, share=math.nan, fold=0, seed=0
        )  # nobody knows what these were trained with
        units.add(summary["unit"])
        warnings += [text for text in summary["warnings"] if text not in warnings]
    comparison = Comparison(
        tuple(predictions), classes, one_unit(units), pd.DataFrame(rows), {}, tuple(warnings)
    )
    facts = {
        **{name: str(folder) for name, folder in predictions.items()},
        "references": f"{references}, {len(cases)} cases",
        "date": date.today().isoformat(),
    }
    pictures = [picture_of(f"{m} of every case", box_plot(comparison, m)) for m in METRICS]
    title = f"{len(predictions)} predictions compared"
    return publish(output, title, facts, comparison, {"Cases": pictures}, [])


def cases_of(folder: Path, dataset: Mapping[str, Any]) -> list[str]:
    """Names of the segmentations in a folder.

    Raises:
        ValueError: there is none.
    """
    ending = dataset["file_ending"]
    cases = sorted(file.name.removesuffix(ending) for file in folder.glob(f"[!.]*{ending}"))
    if not cases:
        raise ValueError(f"There is no file *{ending} in {folder}.")
    return cases
