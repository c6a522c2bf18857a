"""CRAG, glands in H&E histology: ``train`` and ``valid`` or ``test``, each with PNG files in
``Images`` (RGB) and ``Annotation`` (instance maps: 0 background, one number a gland)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnunetv2_plgcl.datasets.convert.source import Download, Part, RawCase, Source

OFFICIAL = {"train": 173, "test": 40}
LABELS = {"background": 0, "gland": 1}


def find(source: Path, cine: bool) -> Download:
    """List the cases of a download.

    Args:
        source: the folder that has ``train`` and ``valid`` or ``test`` in it.
        cine: there is none.

    Raises:
        ValueError: it is no such folder, or an image lacks its annotation.
    """
    if cine:
        raise ValueError("--cine is for ACDC: CRAG has no 4D images.")
    test = next((f for f in (source / "test", source / "valid") if f.is_dir()), source / "test")
    parts: dict[str, tuple[Path, Part]] = {
        "train": (source / "train", "Tr"),
        "test": (test, "Ts"),
    }
    if not (source / "train" / "Images").is_dir():
        raise ValueError(f"{source} is no CRAG download: train/Images is not there.")
    cases, missing = [], []
    for split, (folder, part) in parts.items():
        images = {file.stem: file for file in sorted((folder / "Images").glob("*.png"))}
        for name, image in images.items():
            label = folder / "Annotation" / f"{name}.png"
            if not label.is_file():
                raise ValueError(f"{label} is missing.")
            cases.append(RawCase(name, part, name, (image,), (label,)))
        missing += [
            name for n in range(1, OFFICIAL[split] + 1) if (name := f"{split}_{n}") not in images
        ]
    return Download(cases, missing)


def write(case: RawCase, image_target: Path, label_target: Path | None) -> None:
    """Write one case, see ``Source``: RGB as nnU-Net's natural-image reader wants it, and
    instances as foreground."""
    image = np.asarray(_read_png(case.image[0]).convert("RGB"))
    if case.label is not None and label_target is not None:
        instances = np.asarray(_read_png(case.label[0]))
        if instances.shape != image.shape[:2]:
            raise ValueError(
                f"{case.label[0]}: the annotation has shape {instances.shape}, the image "
                f"{image.shape[:2]}."
            )
        Image.fromarray((instances > 0).astype(np.uint8)).save(label_target)
    Image.fromarray(image).save(image_target)


def _read_png(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{file} is damaged or no PNG: {' '.join(str(error).split())}") from None


CRAG = Source(
    name="CRAG",
    channel_names={0: "R", 1: "G", 2: "B"},
    labels=LABELS,
    file_ending=".png",
    reference="Graham et al., MILD-Net, Medical Image Analysis 2019",
    find=find,
    write=write,
)
