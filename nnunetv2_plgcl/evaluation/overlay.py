"""Segmentations side by side as contours on their image. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe & Ito (2008): told apart with any colour vision, and none is a grey of the image.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
TITLE_WIDTH = 34  # letters that fit above a panel


def slice_with_most_foreground(segmentation: np.ndarray) -> int:
    """Index along axis 0 of a segmentation (Z, Y, X), the first one if several are equal."""
    return int((segmentation > 0).sum(axis=(1, 2)).argmax())


def plain(text: str) -> str:
    """A name for matplotlib, which takes what stands between two $ for a formula."""
    return text.replace("$", r"\$")


def overlay_figure(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    classes: Mapping[int, str],
    spacing: tuple[float, float] = (1.0, 1.0),
) -> Figure:
    """Draw the image alone and once for each segmentation with a contour for every class.

    Args:
        image: one slice (Y, X).
        segmentations: title of the panel -> labels (Y, X).
        classes: label -> name in the legend; other labels are not drawn.
        spacing: height and width of a pixel, in mm.

    Returns:
        A figure of its own, unknown to pyplot; write it with ``figure.savefig("overlay.png")``.

    Raises:
        ValueError: a segmentation of another shape than the image.
    """
    for title, segmentation in segmentations.items():
        if segmentation.shape != image.shape:
            raise ValueError(
                f"{title} has shape {segmentation.shape}, but the image has {image.shape}."
            )
    colour = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(classes)}
    aspect = spacing[0] / spacing[1]
    height = 3.0 * aspect * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(3.0 * (1 + len(segmentations)), height + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    window = np.percentile(image, (1, 99))
    panels = figure.subplots(1, 1 + len(segmentations), squeeze=False)[0]
    for panel, title in zip(panels, ["image", *segmentations], strict=True):
        panel.imshow(image, cmap="gray", aspect=aspect, vmin=window[0], vmax=window[1])
        panel.set_title(plain("\n".join(wrap(title, TITLE_WIDTH))), fontsize=9)
        panel.set_axis_off()
    for panel, segmentation in zip(panels[1:], segmentations.values(), strict=True):
        for label in classes:
            mask = segmentation == label
            if mask.any():
                panel.contour(mask, levels=[0.5], colors=[colour[label]], linewidths=1.2)
    lines = [
        Line2D([], [], color=colour[label], label=plain(name)) for label, name in classes.items()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=max(1, len(lines)))
    return figure
