"""What every download has in common: cases to write, and what they must look like."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import SimpleITK as sitk

from nnunetv2_plgcl.datasets.integrity import require_whole

GEOMETRY_TOLERANCE = 1e-3  # mm, and for directions
Part = Literal["Tr", "Ts", "Un"]


@dataclass(frozen=True)
class RawCase:
    """One case of a download.

    Attributes:
        name: in nnU-Net.
        part: imagesTr, imagesTs or imagesUn.
        patient: that protocols list.
        image: source file, or several that make up one image.
        label: likewise; None without a label.
        frame: of a 4D file, from 0; None for all of a 3D file.
    """

    name: str
    part: Part
    patient: str
    image: tuple[Path, ...]
    label: tuple[Path, ...] | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Download:
    """The cases of a download, and what is missing of the official release."""

    cases: list[RawCase]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A dataset that can be converted.

    Attributes:
        name: of the nnU-Net dataset.
        channel_names, labels: for dataset.json.
        file_ending: of what is written.
        reference: the paper and licence to name.
        find: lists the cases of a folder; raises ValueError for a folder that is none.
        write: writes one case; gets the case, the target image (without ``_0000`` and ending) and
            label, raises ValueError for a damaged one.
        strict: whether nnU-Net's planning looks at intensities inside labels (CT), so that the
            paper's protocol keeps the labels of unlabelled cases away from it.
    """

    name: str
    channel_names: Mapping[int, str]
    labels: Mapping[str, int]
    file_ending: str
    reference: str
    find: Callable[[Path, bool], Download]
    write: Callable[[RawCase, Path, Path | None], None]
    strict: bool = False


def refuse_collisions(cases: list[RawCase]) -> None:
    """
    Raises:
        ValueError: two cases would get the same name.
    """
    first: dict[str, RawCase] = {}
    for case in cases:
        other = first.setdefault(case.name, case)
        if other is not case:
            raise ValueError(
                f"{other.image[0]} and {case.image[0]} would both become {case.name}: rename one."
            )


def require_same_geometry(image: sitk.Image, label: sitk.Image, file: Path) -> None:
    """
    Raises:
        ValueError: size, spacing, origin or direction differ.
    """
    for what in ("Size", "Spacing", "Origin", "Direction"):
        of_image, of_label = (np.array(getattr(x, f"Get{what}")()) for x in (image, label))
        same = of_image.shape == of_label.shape
        if not same or not np.allclose(of_image, of_label, atol=GEOMETRY_TOLERANCE):
            raise ValueError(
                f"{file}: the label's {what.lower()} {of_label.tolist()} is not the image's "
                f"{of_image.tolist()}."
            )


def require_known_labels(values: np.ndarray, labels: Mapping[str, int], file: Path) -> None:
    """
    Raises:
        ValueError: the label has a value that dataset.json would not name.
    """
    unknown = sorted(set(np.unique(values).tolist()) - set(labels.values()))
    if unknown:
        raise ValueError(
            f"{file} has label {', '.join(map(str, unknown[:5]))}, but only "
            f"{', '.join(f'{value} ({name})' for name, value in labels.items())} are known."
        )


def read_nifti(file: Path) -> sitk.Image:
    """
    Raises:
        ValueError: the file is damaged or no NIfTI.
    """
    require_whole(file)
    try:
        return sitk.ReadImage(str(file), imageIO="NiftiImageIO")
    except RuntimeError:
        raise ValueError(f"{file} is no NIfTI image.") from None


def write_nifti_case(
    case: RawCase, image_target: Path, label_target: Path | None, labels: Mapping[str, int]
) -> None:
    """Check a case of NIfTI files and copy it, or one frame of a 4D file.

    Raises:
        ValueError: a file is damaged, the geometries differ, or the label has an unknown value.
    """
    (image_file,) = case.image
    image = read_nifti(image_file)
    if image.GetDimension() != (3 if case.frame is None else 4):
        raise ValueError(f"{image_file} has {image.GetDimension()} dimensions.")
    if case.label is not None and label_target is not None:
        (label_file,) = case.label
        label = read_nifti(label_file)
        require_same_geometry(image, label, label_file)
        require_known_labels(sitk.GetArrayViewFromImage(label), labels, label_file)
        shutil.copyfile(label_file, label_target)
    if case.frame is None:
        shutil.copyfile(image_file, image_target)
    else:
        sitk.WriteImage(image[..., case.frame], str(image_target))


def subfolders(folder: Path, pattern: str) -> list[Path]:
    """Sorted folders whose names match a shell pattern."""
    return sorted(path for path in folder.glob(pattern) if path.is_dir())


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A temporary folder with the content of a tar archive.

    Raises:
        ValueError: it is none, or damaged.
    """
    with TemporaryDirectory() as folder:
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError) as error:
            reason = " ".join(str(error).split())  # tarfile gives a line for each compression
            raise ValueError(f"{archive} is damaged or no tar archive: {reason}") from None
        yield Path(folder)
