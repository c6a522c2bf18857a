"""Figures of a comparison: box plots and learning curves. Source: ours."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_plgcl.evaluation.comparison import Comparison
from nnunetv2_plgcl.evaluation.overlay import COLOURS, plain

WIDTH = 6.4  # inches; each figure fits a column of text and, scaled, a telephone


def box_plot(comparison: Comparison, metric: str) -> Figure:
    """One box a trainer and number of labelled cases: quartiles, whiskers to 1.5 times their
    distance, every case as a dot. Values are means over classes and repetitions.

    Args:
        comparison: to draw.
        metric: one of ``comparison.METRICS``.
    """
    amounts, trainers = comparison.amounts, comparison.trainers
    figure = _figure(0.9 + 0.35 * len(amounts) * (len(trainers) + 1))
    axis = figure.subplots()
    ticks, labels = [], []
    for group, labelled in enumerate(amounts):
        values = comparison.per_case(labelled, metric)
        for place, trainer in enumerate(trainers):
            y = group * (len(trainers) + 1) + place
            known = values[trainer].dropna().to_numpy()
            colour = COLOURS[place % len(COLOURS)]
            if len(known):
                axis.boxplot(
                    [known], positions=[y], orientation="horizontal", widths=0.7,
                    showfliers=False, patch_artist=True,
                    boxprops={"facecolor": colour, "alpha": 0.6}, medianprops={"color": "black"},
                )  # fmt: skip
                spread = np.linspace(-0.2, 0.2, len(known)) if len(known) > 1 else np.zeros(1)
                axis.plot(known, y + spread, "o", markersize=2.5, color="black", alpha=0.5)
            ticks.append(y)
            name = plain(comparison.short_name(trainer))
            labels.append(f"{name}\n{labelled} labelled" if len(amounts) > 1 else name)
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(metric if metric == "DSC" else f"{metric} ({comparison.unit})")
    axis.grid(axis="x", alpha=0.3)
    return figure


def learning_curves(comparison: Comparison, labelled: int) -> Figure:
    """Mean foreground Dice of nnU-Net's online validation by epoch, the mean over repetitions
    with the range between them.

    Args:
        comparison: to draw.
        labelled: number of labelled cases.
    """
    figure = _figure(3.6)
    axis = figure.subplots()
    of = comparison.scores[comparison.scores["labelled"] == labelled]
    folds = set(of["fold"].unique())
    for place, trainer in enumerate(comparison.trainers):
        curves = [
            course.online_dice
            for run, course in comparison.courses.items()
            if run.trainer == trainer and run.fold in folds
        ]
        values = np.array(curves)
        epochs = np.arange(1, values.shape[1] + 1)
        colour = COLOURS[place % len(COLOURS)]
        name = plain(comparison.short_name(trainer))
        axis.plot(epochs, values.mean(0), marker=".", color=colour, label=name)
        if len(values) > 1:
            axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2)
    axis.set(xlabel="epoch", ylabel="online validation Dice", ylim=(0, 1))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", fontsize=8, ncols=2)
    return figure


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever the user's backend
    return figure
