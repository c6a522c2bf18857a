"""What a check needs to know of each image, read once and remembered. Labels are never opened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_plgcl.datasets.cache import read_once
from nnunetv2_plgcl.datasets.integrity import require_whole
from nnunetv2_plgcl.datasets.raw import spacing_file
from nnunetv2_plgcl.workers import naming, one_line

CACHE = "plgcl_images.json"  # in the preprocessed dataset's folder
NIFTI1 = 348  # bytes of its header


@dataclass(frozen=True)
class ImageSummary:
    """One raw image, as nnU-Net's reader gives it.

    Attributes:
        shape: (Z, Y, X) voxels.
        spacing: mm along the same axes; what the reader makes up where a format has none.
        orientation: such as "LPS" for axes (X, Y, Z), or None where a format has none.
        minimum, maximum, mean: of the finite values of each channel.
        finite: whether all values are.
        digest: of shape and values, equal for equal images however they are stored.
        error: why the image cannot be read, in one line; then all else is empty.
    """

    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str | None = None
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    finite: bool = True
    digest: str = ""
    error: str | None = None


def summarise(data: np.ndarray, properties: Mapping[str, Any]) -> ImageSummary:
    """
    Args:
        data: (C, Z, Y, X), as nnU-Net's readers return it.
        properties: of the same reader.
    """
    channels = data.reshape(len(data), -1).astype(np.float64)
    finite = np.isfinite(channels)
    known = [channel[where] if where.any() else np.zeros(1) for channel, where in
             zip(channels, finite, strict=True)]  # fmt: skip
    digest = hashlib.blake2b(str(data.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(data, dtype=np.float32).tobytes())
    return ImageSummary(
        shape=tuple(map(int, data.shape[1:])),
        spacing=tuple(map(float, properties["spacing"])),
        orientation=_orientation(properties),
        minimum=tuple(float(c.min()) for c in known),
        maximum=tuple(float(c.max()) for c in known),
        mean=tuple(float(c.mean()) for c in known),
        finite=bool(finite.all()),
        digest=digest.hexdigest(),
    )


def _orientation(properties: Mapping[str, Any]) -> str | None:
    if "sitk_stuff" in properties:
        direction = properties["sitk_stuff"]["direction"]
        if len(direction) == 9:
            import SimpleITK as sitk

            orient = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
            return str(orient(direction))
    if "nibabel_stuff" in properties:
        import nibabel

        affines = properties["nibabel_stuff"]  # the second, where the reader has turned the image
        affine = affines.get("reoriented_affine", affines["original_affine"])
        return "".join(nibabel.aff2axcodes(affine))
    return None


def read_summary(files: Sequence[Path], reader: Any) -> ImageSummary:
    """Read one case with nnU-Net's reader; an error becomes part of the summary."""
    try:
        for file in files:
            require_whole(file)
        with naming(files[0]):
            summary = summarise(*reader().read_images([str(file) for file in files]))
        # SimpleITK reads NaN in NIfTI files as 0
        return replace(summary, finite=summary.finite and all(map(_is_finite, files)))
    except Exception as error:  # a reader may raise anything
        return ImageSummary(error=one_line(error))


def _is_finite(file: Path) -> bool:
    """Whether a NIfTI file of floats holds finite values only; other files are taken for such."""
    if not file.name.endswith((".nii", ".nii.gz")):
        return True
    import nibabel
    from nibabel.openers import ImageOpener

    with ImageOpener(str(file)) as stream:  # most images hold integers: then their header is enough
        header = nibabel.Nifti1Header(stream.read(NIFTI1), check=False)
    is_float = np.issubdtype(header.get_data_dtype(), np.floating)
    if header["sizeof_hdr"] == NIFTI1 and not is_float:
        return True
    image: Any = nibabel.load(file)
    return bool(np.isfinite(np.asanyarray(image.dataobj)).all())


def summaries(
    images: Mapping[str, Sequence[Path]], reader: Any, cache: Path, processes: int
) -> dict[str, ImageSummary]:
    """Summaries of all images; those that did not change since the last call are not read again.

    Args:
        images: files of each case, one per channel or one for all.
        reader: nnU-Net's reader class of the dataset.
        cache, processes: as for ``read_once``.
    """
    arguments = {case: (files, reader) for case, files in images.items()}
    files = {case: [*of, spacing_file(of[0])] for case, of in images.items()}
    found = read_once(_values, arguments, files, cache, processes, "Checking images")
    return {case: _from_json(values) for case, values in found.items()}


def _values(files: Sequence[Path], reader: Any) -> dict[str, Any]:
    values = asdict(read_summary(files, reader))
    return {key: value for key, value in values.items() if (key, value) != ("error", None)}


def _from_json(values: dict[str, Any]) -> ImageSummary:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return ImageSummary(**fields)
