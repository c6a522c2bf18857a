"""Where the voxels of a segmentation lie, as far as its file says so. Source: ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

TOLERANCE = 0.1  # voxels; more than spacings lose that are rounded to three decimals


def has_spacing(reader: type, file: Path | str) -> bool:
    """Whether the file of a segmentation tells its spacing. nnU-Net's reader makes one up for
    PNG, BMP and plain TIFF, and for TIFF volumes without a JSON file beside them."""
    if issubclass(reader, NaturalImage2DIO):
        return False
    return not issubclass(reader, Tiff3DIO) or Path(file).with_suffix(".json").is_file()


def some_have_spacing(reader: type, pairs: Iterable[tuple[Path, Path]]) -> bool:
    """Of references and their predictions, whether any file tells its spacing."""
    return any(has_spacing(reader, file) for pair in pairs for file in pair)


def distance_unit(reader: type, pairs: Iterable[tuple[Path, Path]], voxel: bool) -> str:
    """What distances between references and their predictions are measured in.

    Args:
        reader: nnU-Net's reader class of the files.
        pairs: file of the reference and of the prediction.
        voxel: voxels are wanted.

    Returns:
        "mm" where for every pair one of the two tells its spacing, else "voxels", of photographs
        "pixels".
    """
    if not voxel and all(any(has_spacing(reader, file) for file in pair) for pair in pairs):
        return "mm"
    return "pixels" if issubclass(reader, NaturalImage2DIO) else "voxels"


def displacement(one: Mapping[str, Any], other: Mapping[str, Any], shape: Sequence[int]) -> float:
    """How far two voxels of equal index lie apart at most, in edges of ``other``'s smallest voxel.

    Args:
        one, other: properties from nnU-Net's readers.
        shape: (Z, Y, X) voxels of both.
    """
    (axes, origin), (axes_other, origin_other) = _placement(one), _placement(other)
    if axes.shape != axes_other.shape:
        return math.inf
    extent = [length - 1 for length in shape[::-1][: len(origin)]]
    corners = np.array(list(itertools.product(*((0, last) for last in extent))), float)
    apart = corners @ (axes - axes_other).T + origin - origin_other
    edge = float(np.linalg.norm(axes_other, axis=0).min())
    return float(np.linalg.norm(apart, axis=1).max()) / edge


def _placement(properties: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Steps along the image's axes as columns (D, D), and the first voxel's place (D,), in mm, D
    in the order X, Y, Z."""
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        spacing = np.array(stuff["spacing"], float)
        direction = np.array(stuff["direction"], float).reshape(len(spacing), len(spacing))
        return direction * spacing, np.array(stuff["origin"], float)
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = np.array(stuff.get("reoriented_affine", stuff["original_affine"]), float)
        return affine[:3, :3], affine[:3, 3]
    spacing = np.array(properties["spacing"][::-1], float)
    return np.diag(spacing), np.zeros(len(spacing))
