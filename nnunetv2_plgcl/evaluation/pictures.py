"""Pictures of a comparison that need images or networks; without them a note says why not.

Source: ours.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunetv2_plgcl.datasets.description import class_names, label_manager
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.evaluation import tsne
from nnunetv2_plgcl.evaluation.comparison import Comparison, cases_to_show
from nnunetv2_plgcl.evaluation.overlay import overlay_figure, slice_with_most_foreground
from nnunetv2_plgcl.evaluation.report import Picture, picture_of
from nnunetv2_plgcl.evaluation.runs import Run


def overlays(
    comparison: Comparison,
    predictions: Mapping[Run, Path],
    images: Mapping[str, Sequence[Path]],
    references: Path,
    dataset: Mapping[str, Any],
) -> tuple[list[Picture], list[str]]:
    """Image, reference and each trainer's first repetition for the best, median and worst case.

    Args:
        comparison: of the predictions.
        predictions: folder of each run.
        images: files of each case; a case without them gets no picture.
        references: folder.
        dataset: content of dataset.json.

    Returns:
        The pictures, and a note for each that could not be drawn.
    """
    ending, legend = dataset["file_ending"], label_names(dataset)
    pictures, lost = [], []
    for labelled in comparison.amounts:
        of_amount = comparison.scores[comparison.scores["labelled"] == labelled]
        values = comparison.per_case(labelled, "DSC").mean(axis=1)
        for rank, case in cases_to_show(comparison, labelled).items():
            if case not in images:
                lost.append(case)
                continue
            fold = of_amount[of_amount["case"] == case]["fold"].iloc[0]
            files = [str(file) for file in images[case]]
            reader = determine_reader_writer_from_dataset_json(
                dict(dataset), files[0], verbose=False
            )()
            image, properties = reader.read_images(files)
            truth = _segmentation(reader, references / f"{case}{ending}")
            volumes = {"reference": np.where(np.isin(truth, list(legend)), truth, 0)}
            for run, folder in predictions.items():
                if run.fold == fold and run.seed == 0:
                    name = comparison.short_name(run.trainer)
                    volumes[name] = _segmentation(reader, folder / f"{case}{ending}")
            z = slice_with_most_foreground(volumes["reference"])
            spacing = tuple(float(length) for length in properties["spacing"][-2:])
            figure = overlay_figure(
                image[0, z], {t: v[z] for t, v in volumes.items()}, legend, (spacing[0], spacing[1])
            )
            title = f"{rank} case, {case}, {labelled} labelled: DSC {100 * values[case]:.1f} %"
            pictures.append(picture_of(f"{title} (mean over trainers)", figure, wide=True))
    notes = [f"{some(sorted(set(lost)))} not drawn: the raw images are not at hand."]
    return pictures, notes if lost else []


def label_names(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Names of the values in a segmentation. With regions a value stands for the voxels of one
    region that are in none of the later ones."""
    labels = label_manager(dataset)
    values = labels.regions_class_order if labels.has_regions else labels.foreground_labels
    return dict(zip(map(int, values), class_names(dataset), strict=True))


def _segmentation(reader: Any, file: Path) -> np.ndarray:
    segmentation: np.ndarray = reader.read_seg(str(file))[0][0]
    return segmentation


def tsne_of_features(
    models: Mapping[str, Path], fold: int | str, cases: Sequence[str]
) -> tuple[list[Picture], list[str]]:
    """Patch features of some cases.

    Args:
        models: title -> model folder.
        fold: whose weights.
        cases: preprocessed ones with labels.

    Returns:
        The picture; or none, and a note why: a network without an encoder, a cascade's second
        stage, too few patches, no memory.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net tells where it looks
            features = {
                title: tsne.features_of_model(folder, fold, cases, device=device)
                for title, folder in models.items()
            }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tsne.png"
            tsne.tsne_figure(features, file)
            png = file.read_bytes()
    except (RuntimeError, ValueError, FileNotFoundError) as error:  # a full GPU among them
        return [], [f"No t-SNE of features: {error}"]
    title = f"Patches of validation cases by class (t-SNE), fold {fold}"
    return [Picture(title, png, wide=True)], []
