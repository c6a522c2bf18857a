"""What a check needs to know of each image, read once and remembered. Labels are never opened."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_plgcl.datasets.files import states_of
from nnunetv2_plgcl.datasets.integrity import require_whole

CACHE = "plgcl_images.json"  # in the preprocessed dataset's folder
NIFTI1 = 348  # bytes of its header
IN_THIS_PROCESS = 64  # so few images are read before worker processes have started


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

        return "".join(nibabel.aff2axcodes(properties["nibabel_stuff"]["original_affine"]))
    return None


def read_summary(files: Sequence[Path], reader: Any) -> ImageSummary:
    """Read one case with nnU-Net's reader; an error becomes part of the summary."""
    try:
        for file in files:
            require_whole(file)
        summary = summarise(*reader().read_images([str(file) for file in files]))
        # SimpleITK reads NaN in NIfTI files as 0
        return replace(summary, finite=summary.finite and all(map(_is_finite, files)))
    except Exception as error:  # a reader may raise anything
        return ImageSummary(error=" ".join(str(error).split()) or type(error).__name__)


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
        cache: JSON file, made or replaced in one step. Where it cannot be written, all is read
            again the next time.
        processes: to read many images with.
    """
    remembered = _read_cache(cache)
    states = {case: states_of(files) for case, files in images.items()}
    found = {
        case: _from_json(remembered[case]["summary"])
        for case, state in states.items()
        if case in remembered and remembered[case]["state"] == state
    }
    waiting = [case for case in images if case not in found]
    if waiting:
        arguments = [images[case] for case in waiting], repeat(reader)
        bar = tqdm(
            total=len(waiting), desc="Checking images", disable=len(waiting) < IN_THIS_PROCESS
        )
        with bar:
            if len(waiting) < IN_THIS_PROCESS or processes < 2:
                found.update(_count(zip(waiting, map(read_summary, *arguments), strict=True), bar))
            else:
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(processes, context) as pool:
                    results = pool.map(read_summary, *arguments, chunksize=16)
                    found.update(_count(zip(waiting, results, strict=True), bar))
        readable = {case: summary for case, summary in found.items() if summary.error is None}
        _write_cache(
            cache,
            {
                **remembered,
                **{c: {"state": states[c], "summary": asdict(s)} for c, s in readable.items()},
            },
        )
    return {case: found[case] for case in images}


def _count(pairs: Any, bar: tqdm) -> Any:
    for pair in pairs:
        bar.update()
        yield pair


def _from_json(values: dict[str, Any]) -> ImageSummary:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return ImageSummary(**fields)


def _read_cache(cache: Path) -> dict[str, dict]:
    try:
        content: dict[str, dict] = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return content


def _write_cache(cache: Path, content: dict[str, dict]) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content))
        os.replace(temporary, cache)
    except OSError:
        temporary.unlink(missing_ok=True)
