"""What finished trainings score: a row and a file of scores for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.trainings import Training
from nnunetv2_plgcl.datasets.description import class_names
from nnunetv2_plgcl.datasets.files import (
    nnunet_folder,
    read_json,
    read_split,
    replacing,
    split_file,
    states_of,
    write_json,
)
from nnunetv2_plgcl.evaluation import tables
from nnunetv2_plgcl.evaluation.comparison import METRICS, Comparison, results, scores_of, tests
from nnunetv2_plgcl.evaluation.folds import Fold
from nnunetv2_plgcl.evaluation.postprocessing import postprocess
from nnunetv2_plgcl.evaluation.refuse import require_alike
from nnunetv2_plgcl.evaluation.runs import FINAL, read_course

CPU_SECONDS = "cpu_seconds"  # in the log of the benchmark's trainers
POSTPROCESSED = "postprocessed"
COSTS = ("training (h)", "ms per iteration", "peak memory (GiB)")


def is_evaluated(training: Training, postprocessing: bool) -> bool:
    """Whether there is a row of this very training."""
    try:
        row = read_json(training.row.with_suffix(".json"))
    except (OSError, ValueError):
        return False
    same = row["model"] == states_of([training.run.folder / FINAL])
    return bool(same and (row[POSTPROCESSED] or not postprocessing))


def evaluate(training: Training, postprocessing: bool, processes: int) -> None:
    """Write row and scores, before and, if asked for, after nnU-Net's postprocessing."""
    run = training.run
    of_dataset = nnunet_folder("nnUNet_preprocessed") / run.dataset / "gt_segmentations"
    predictions = {False: training.predictions}
    if postprocessing:
        output = training.folder / POSTPROCESSED / training.row.name
        predictions[True] = postprocess(run, predictions[False], of_dataset, output, processes)
    reference = training.test[1] if training.test else of_dataset
    row, parts = origin(training), []
    for after, folder in predictions.items():
        scores = _scores(training, folder, reference, processes)
        of = _comparison([training], scores)
        (summary,) = results(of).to_dict("records")
        per_class = [f"{metric} {name}" for metric in METRICS for name in of.classes]
        for name in (*METRICS, *per_class, "empty predictions"):
            row[f"post. {name}" if after else name] = summary[name]
        parts.append(scores.assign(**{POSTPROCESSED: after}))
    checkpoint = torch.load(run.folder / FINAL, map_location="cpu", weights_only=False)
    cpu_seconds = float(np.sum(checkpoint["logging"][CPU_SECONDS]))
    row |= {name: summary[name] for name in COSTS}
    row |= {
        "CPU ms per iteration": 1000 * cpu_seconds / training.iterations,
        POSTPROCESSED: postprocessing,
        "model": states_of([run.folder / FINAL]),
    }
    training.row.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).to_csv(training.row.with_suffix(".csv"), index=False)
    write_json(training.row.with_suffix(".json"), row)


def origin(training: Training) -> dict[str, Any]:
    """Where a row comes from. Commit, device and day are those of the training (of a continued
    one, of its last part)."""
    file = training.run.folder / "debug.json"
    debug = json.loads(file.read_text())
    return {
        "commit": debug.get("commit", "unknown"),
        "device": debug.get("gpu_name", debug["device"]),
        "day": date.fromtimestamp(file.stat().st_mtime).isoformat(),
        "dataset": training.dataset,
        "split": training.fold.split,
        "cases": str(training.test[0]) if training.test else training.fold.split,
        "labelled": training.fold.labelled,
        "trainer": training.trainer,
        "seed": training.run.seed,
        "settings": json.dumps(training.settings, sort_keys=True),
        "configuration": training.run.configuration,
        "iterations": training.iterations,
    }


def _scores(training: Training, predictions: Path, reference: Path, processes: int) -> pd.DataFrame:
    """Of each case, class and metric, as in docs/scores."""
    run, cases = training.run, training.fold.cases
    scores, _, _ = scores_of(
        {run: predictions},
        reference,
        {run.fold: None if training.test else cases["val"]},
        {run.fold: Fold.of(cases)},
        read_json(run.model_folder / "dataset.json"),
        voxel=True,
        processes=processes,
    )
    return scores.assign(trainer=training.trainer)


def _comparison(trainings: Sequence[Training], scores: pd.DataFrame) -> Comparison:
    dataset = read_json(trainings[0].run.model_folder / "dataset.json")
    return Comparison(
        trainers=tuple(dict.fromkeys(training.trainer for training in trainings)),
        classes=tuple(class_names(dataset)),
        unit="voxels",
        scores=scores,
        courses={replace(t.run, trainer=t.trainer): read_course(t.run) for t in trainings},
    )


def write_tables(trainings: Sequence[Training], postprocessing: bool, output: Path) -> list[Path]:
    """Trainers side by side, seeds as repetitions, with paired tests against the first: in
    ``output``, and after postprocessing in a folder inside it.

    Returns:
        The files table.csv.

    Raises:
        ValueError: trainings had other cases, plans or iterations than the others.
    """
    runs = [training.run for training in trainings]
    folds = enumerate(read_split(split_file(runs[0].dataset)))
    require_alike(runs, {number: Fold.of(parts) for number, parts in folds}, trust_split=False)
    files = (training.row.with_suffix(".csv") for training in trainings)
    every = pd.concat([pd.read_csv(file) for file in files])
    written = []
    for after in (False, True) if postprocessing else (False,):
        folder = output / POSTPROCESSED if after else output
        folder.mkdir(parents=True, exist_ok=True)
        scores = every[every[POSTPROCESSED] == after].drop(columns=POSTPROCESSED)
        of = _comparison(trainings, scores.reset_index(drop=True))
        tables.write_tables(of, results(of), tests(of), folder)
        written.append(folder / "table.csv")
    return written


def collect(work: Path) -> Path:
    """Every row of every dataset so far, in one file."""
    rows = [read_json(file) for file in sorted(work.glob("*/rows/*.json"))]
    file = work / "results.csv"
    text = pd.DataFrame(rows).drop(columns="model").to_csv(index=False)
    with replacing(file) as stream:  # calls beside this one write it too
        stream.write(text.encode())
    return file
