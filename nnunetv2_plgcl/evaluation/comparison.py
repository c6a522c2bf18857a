"""Several trainers on the same folds: scores of every case, and what may be said of them.

Repetitions of a case (seeds, and folds with as many labelled cases) are averaged first, so that
a case counts once in every mean, interval and test. Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_plgcl.datasets.description import class_names
from nnunetv2_plgcl.evaluation.evaluate import REPORTED, evaluate_folder
from nnunetv2_plgcl.evaluation.folds import Fold
from nnunetv2_plgcl.evaluation.runs import Course, Run
from nnunetv2_plgcl.evaluation.statistics import bootstrap_interval, holm, paired_wilcoxon

STOCK = "nnUNetTrainer"
NAMES = {"Dice": "DSC"}  # in tables and figures; the others keep theirs
METRICS = tuple(NAMES.get(metric, metric) for metric in REPORTED)


@dataclass(frozen=True)
class Comparison:
    """Everything that tables, figures and the report show.

    Attributes:
        trainers: in the order of the tables; the first is what the others are compared with.
        classes: names.
        unit: of the distances, "mm", "voxels" or "pixels".
        scores: one row for each run, case, class and metric: trainer, labelled (cases), share
            (of all training cases, 0 to 1), fold, seed, case, class, metric, value, empty.
        courses: of each run; none for predictions whose training is unknown.
        warnings: of the evaluation, a sentence each.
    """

    trainers: tuple[str, ...]
    classes: tuple[str, ...]
    unit: str
    scores: pd.DataFrame
    courses: Mapping[Run, Course]
    warnings: tuple[str, ...] = ()

    @property
    def amounts(self) -> list[int]:
        """Numbers of labelled cases, ascending."""
        return sorted(self.scores["labelled"].unique().tolist())

    def short_name(self, trainer: str) -> str:
        """For tables and figures: without what the names of all trainers begin with."""
        if not all(name.startswith(STOCK) for name in self.trainers):
            return trainer
        rest = trainer.removeprefix(STOCK)
        return rest if rest and not rest.startswith("_") else f"nnU-Net{rest}"

    def per_case(self, labelled: int, metric: str, of_class: str | None = None) -> pd.DataFrame:
        """Cases as rows, trainers as columns: the mean over repetitions, and over classes unless
        one is named. NaN where no repetition has a value."""
        of = self.scores
        of = of[(of["labelled"] == labelled) & (of["metric"] == metric)]
        if of_class is not None:
            of = of[of["class"] == of_class]
        means = of.groupby(["case", "trainer"])["value"].mean().unstack()
        return means.reindex(columns=list(self.trainers))

    def paired(self, labelled: int, metric: str, one: str, other: str) -> tuple[pd.DataFrame, int]:
        """Cases as rows, two trainers as columns: the mean over the classes that both have a value
        for, each a mean over repetitions. So a trainer gains nothing by a class that it misses.

        Returns:
            The table, and the number of pairs (case, class) that only one or none has.
        """
        of = self.scores
        of = of[(of["labelled"] == labelled) & (of["metric"] == metric)]
        each = of.groupby(["case", "class", "trainer"])["value"].mean().unstack()[[one, other]]
        both = each.dropna()
        return both.groupby("case").mean(), len(each) - len(both)


def scores_of(
    runs: Mapping[Run, Path],
    reference: Path,
    cases: Mapping[int | str, Sequence[str] | None],
    folds: Mapping[int | str, Fold],
    dataset: Mapping[str, Any],
    voxel: bool,
    processes: int,
) -> tuple[pd.DataFrame, str, list[str]]:
    """Evaluate the predictions of each run.

    Args:
        runs: run -> folder of its predictions.
        reference: folder of references.
        cases: to evaluate, by fold; None for all of the folders.
        folds: with their numbers of cases.
        dataset: content of dataset.json.
        voxel: distances in voxels instead of mm.
        processes: worker processes.

    Returns:
        ``Comparison.scores``, the unit of distances, and warnings.

    Raises:
        ValueError, RuntimeError: as ``evaluate_folder``; units differ.
    """
    rows, units, warnings = [], set(), []
    for run, predictions in runs.items():
        summary = evaluate_folder(
            reference, predictions, dataset,
            cases=cases[run.fold], voxel=voxel, processes=processes,
        )  # fmt: skip
        fold = folds[run.fold]
        rows += rows_of(
            summary, dataset, trainer=run.trainer, labelled=len(fold.labelled), share=fold.share,
            fold=run.fold, seed=run.seed,
        )  # fmt: skip
        units.add(summary["unit"])
        warnings += [text for text in summary["warnings"] if text not in warnings]
    return pd.DataFrame(rows), one_unit(units), warnings


def rows_of(
    summary: Mapping[str, Any], dataset: Mapping[str, Any], **fixed: Any
) -> list[dict[str, Any]]:
    """Rows of ``Comparison.scores``.

    Args:
        summary: from ``evaluate_folder``.
        dataset: content of dataset.json.
        fixed: what all rows have in common.
    """
    names, rows = class_names(dataset), []
    for case in summary["metric_per_case"]:
        name = Path(case["prediction_file"]).name.removesuffix(dataset["file_ending"])
        for of_class, metrics in zip(names, case["metrics"].values(), strict=True):
            of_case = {**fixed, "case": name, "class": of_class, "empty": metrics["empty"]}
            for key, metric in zip(REPORTED, METRICS, strict=True):
                rows.append({**of_case, "metric": metric, "value": metrics[key]})
    return rows


def one_unit(units: Collection[str]) -> str:
    """
    Raises:
        ValueError: there are several.
    """
    if len(units) > 1:
        raise ValueError(
            "Only some of the predictions tell their spacing, so distances would be in "
            f"{' and '.join(sorted(units))}: add --voxel."
        )
    return next(iter(units))


def results(comparison: Comparison) -> pd.DataFrame:
    """The table: one row for each number of labelled cases and trainer, numbers as numbers.

    Columns: labelled, share; for each metric its mean over cases, "low" and "high" end of its
    95 % interval; "DSC sd over seeds" (standard deviation of the mean, NaN with one repetition);
    each metric for each class; "empty predictions" (cases x classes without distances because
    nothing was predicted, summed over repetitions); "p" of Wilcoxon's test of DSC against the
    first trainer, corrected by Holm; training time in hours, ms per iteration, peak memory in
    GiB, as means over repetitions.
    """
    corrected = tests(comparison).set_index(["labelled", "trainer", "metric"])["p (Holm)"]
    rows = []
    for labelled in comparison.amounts:
        of_amount = comparison.scores[comparison.scores["labelled"] == labelled]
        for trainer in comparison.trainers:
            of_trainer = of_amount[of_amount["trainer"] == trainer]
            row: dict[str, Any] = {
                "labelled": labelled, "share": of_trainer["share"].iloc[0], "trainer": trainer
            }  # fmt: skip
            for metric in METRICS:
                values = comparison.per_case(labelled, metric)[trainer].to_numpy()
                row[metric] = _mean(values)
                row[f"{metric} low"], row[f"{metric} high"] = bootstrap_interval(values)
            of_dice = of_trainer[of_trainer["metric"] == "DSC"]
            of_training = of_dice.groupby(["fold", "seed"])["value"].mean()
            # within folds, whose validation cases differ
            row["DSC sd over seeds"] = math.sqrt(of_training.groupby("fold").var().mean())
            for metric in METRICS:
                for of_class in comparison.classes:
                    values = comparison.per_case(labelled, metric, of_class)[trainer].to_numpy()
                    row[f"{metric} {of_class}"] = _mean(values)
            row["empty predictions"] = int((of_dice["empty"] == "prediction").sum())
            row["p"] = corrected.get((labelled, trainer, "DSC"), math.nan)
            row.update(_costs(comparison, trainer, of_trainer["fold"].unique()))
            rows.append(row)
    return pd.DataFrame(rows)


def tests(comparison: Comparison) -> pd.DataFrame:
    """Every other trainer against the first, paired by case and class: mean difference with its
    95 % interval, p of Wilcoxon's signed-rank test over cases, p by Holm over all tests of that
    metric, and how many pairs (case, class) were left out because one had no value."""
    first, *others = comparison.trainers
    rows = []
    for metric in METRICS:
        of_metric: list[dict[str, Any]] = []
        for labelled in comparison.amounts:
            for other in others:
                pairs, left_out = comparison.paired(labelled, metric, other, first)
                one, two = pairs[other].to_numpy(), pairs[first].to_numpy()
                difference = one - two
                low, high = bootstrap_interval(difference)
                of_metric.append({
                    "labelled": labelled, "trainer": other, "against": first, "metric": metric,
                    "cases": len(difference), "left out": left_out,
                    "difference": _mean(difference),
                    "low": low, "high": high, "p": paired_wilcoxon(one, two),
                })  # fmt: skip
        corrected = holm([float(row["p"]) for row in of_metric])
        rows += [{**row, "p (Holm)": p} for row, p in zip(of_metric, corrected, strict=True)]
    columns = ["labelled", "trainer", "against", "metric", "cases", "left out", "difference", "low",
               "high", "p", "p (Holm)"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def cases_to_show(comparison: Comparison, labelled: int) -> dict[str, str]:
    """Best, median and worst case by DSC, averaged over all trainers so that none is favoured."""
    ranked = comparison.per_case(labelled, "DSC").mean(axis=1).dropna().sort_values(kind="stable")
    names = ranked.index.tolist()
    return {"best": names[-1], "median": names[len(names) // 2], "worst": names[0]}


def _costs(comparison: Comparison, trainer: str, folds: Sequence[int | str]) -> dict[str, float]:
    of = [
        c for run, c in comparison.courses.items() if run.trainer == trainer and run.fold in folds
    ]
    memory = [course.peak_memory for course in of if course.peak_memory is not None]
    return {
        "training (h)": _mean(np.array([course.seconds / 3600 for course in of])),
        "ms per iteration": _mean(np.array([1e3 * c.seconds / c.iterations for c in of])),
        "peak memory (GiB)": _mean(np.array(memory, float)) / 2**30,
    }


def _mean(values: np.ndarray) -> float:
    """Of the values that are numbers; NaN without one."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
