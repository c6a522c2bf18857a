"""A page to look at: pseudo-labels on their images, the least sure first. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunetv2_plgcl.evaluation.overlay import overlay_figure, slice_with_most_foreground
from nnunetv2_plgcl.evaluation.report import Picture, picture_of, write_report
from nnunetv2_plgcl.pseudolabels.record import ranked

SHOWN = 40  # pictures; more make a page that no browser likes


def write_page(
    file: Path,
    title: str,
    facts: Mapping[str, str],
    cases: Mapping[str, Mapping[str, Any]],
    images: Mapping[str, Sequence[Path]],
    labels: Mapping[str, Path],
    legend: Mapping[int, str],
    dataset: Mapping[str, Any],
) -> None:
    """
    Args:
        file: of the page.
        title: of the page.
        facts: by name.
        cases: from the record.
        images: files of each case.
        labels: file of each pseudo-label.
        legend: label -> name.
        dataset: content of dataset.json.
    """
    order = ranked(cases)
    pictures = []
    for case in order[:SHOWN]:
        of = cases[case]
        caption = f"{case}: confidence {of['confidence']:.3f}, {of['reason']}"
        pictures.append(_picture(caption, images[case], labels[case], legend, dataset))
    table = pd.DataFrame(
        [
            {"case": case, "confidence": f"{cases[case]['confidence']:.3f}", **{
                name: f"{cases[case]['classes'].get(name, float('nan')):.3f}".replace("nan", "–")
                for name in legend.values() if name != "unsure"
            }}
            for case in order
        ]
    )  # fmt: skip
    hidden = f"; {len(order) - SHOWN} more are not drawn" if len(order) > SHOWN else ""
    write_report(
        file, title, {**facts, "pictures": f"the least sure first{hidden}"},
        {"Confidence": table}, pd.DataFrame(), {"Pseudo-labels": pictures} if pictures else {},
    )  # fmt: skip


def _picture(
    caption: str,
    images: Sequence[Path],
    label: Path,
    legend: Mapping[int, str],
    dataset: Mapping[str, Any],
) -> Picture:
    files = [str(file) for file in images]
    reader = determine_reader_writer_from_dataset_json(dict(dataset), files[0], verbose=False)()
    image, properties = reader.read_images(files)
    segmentation = reader.read_seg(str(label))[0][0]
    z = slice_with_most_foreground(segmentation)
    height, width = (float(edge) for edge in properties["spacing"][-2:])
    figure = overlay_figure(
        image[0, z], {"pseudo-label": segmentation[z]}, dict(legend), (height, width)
    )
    return picture_of(caption, figure)
