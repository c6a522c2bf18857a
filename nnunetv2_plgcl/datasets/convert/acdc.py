"""ACDC, cardiac cine MRI: the official folder, and the h5 files of the semi-supervised literature.

Official: ``database/training/patientNNN`` with ``Info.cfg``, ``patientNNN_frameFF.nii.gz``, its
``_gt`` and ``patientNNN_4d.nii.gz``; ``database/testing`` likewise. h5: ``patientNNN_frameFF.h5``
(whole volumes) or ``patientNNN_frameFF_slice_S.h5``, each with ``image`` and ``label``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_plgcl.datasets.convert.source import (
    Download,
    RawCase,
    Source,
    require_known_labels,
    subfolders,
    write_nifti_case,
)

PATIENTS = {"training": range(1, 101), "testing": range(101, 151)}
LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
LOST_SPACING = (1.0, 1.0, 10.0)  # mm, x y z: stands for what the h5 files do not keep
H5_NAME = re.compile(r"(patient\d+)_(frame\d+)(?:_slice_(\d+))?\.h5")


def find(source: Path, cine: bool) -> Download:
    """List the cases of a download.

    Args:
        source: the folder of the download or one in it.
        cine: take all other frames of the training patients' 4D files as unlabelled images.

    Raises:
        ValueError: it is no such folder, or a patient's files are not all there.
    """
    folders = {
        split: next((f for f in (source / "database" / split, source / split) if f.is_dir()), None)
        for split in PATIENTS
    }
    if folders["training"] is None and subfolders(source, "patient*"):
        folders = dict.fromkeys(PATIENTS, source)  # told apart by their numbers
    if folders["training"] is not None:
        return _find_official(folders, cine)
    if any(source.rglob("patient*_frame*.h5")):
        if cine:
            raise ValueError(f"{source} holds h5 files, which have no 4D images for --cine.")
        return _find_h5(source)
    raise ValueError(
        f"{source} is no ACDC download: neither database/training/patient001 nor "
        f"patient001_frame01.h5 is there."
    )


def _find_official(folders: dict[str, Path | None], cine: bool) -> Download:
    cases, missing = [], []
    for split, numbers in PATIENTS.items():
        folder = folders[split]
        found = {path.name: path for path in subfolders(folder, "patient*")} if folder else {}
        for name in (f"patient{number:03d}" for number in numbers):
            if name in found:
                cases += _of_patient(found[name], split, cine and split == "training")
            else:
                missing.append(name)
    return Download(cases, missing)


def _of_patient(folder: Path, split: str, cine: bool) -> list[RawCase]:
    info = _read_info(folder / "Info.cfg")
    cases = []
    for phase in ("ED", "ES"):
        name = f"{folder.name}_frame{info[phase]:02d}"
        image, label = (folder / f"{name}{end}.nii.gz" for end in ("", "_gt"))
        for file in (image, label):
            if not file.is_file():
                raise ValueError(f"{file} is missing, which Info.cfg names as {phase}.")
        part = "Tr" if split == "training" else "Ts"
        cases.append(RawCase(name, part, folder.name, (image,), (label,)))  # type: ignore[arg-type]
    if cine:
        movie = folder / f"{folder.name}_4d.nii.gz"
        if not movie.is_file():
            raise ValueError(f"{movie} is missing, which --cine needs.")
        labelled = {info["ED"], info["ES"]}
        cases += [
            RawCase(f"{folder.name}_cine{frame:02d}", "Un", folder.name, (movie,), frame=frame - 1)
            for frame in range(1, info["NbFrame"] + 1)
            if frame not in labelled
        ]
    return cases


def _read_info(file: Path) -> dict[str, int]:
    if not file.is_file():
        raise ValueError(f"{file} is missing.")
    text = file.read_text(encoding="utf-8", errors="replace")
    entries = dict(re.findall(r"^\s*(\w+)\s*:\s*(\d+)\s*$", text, re.MULTILINE))
    for key in ("ED", "ES", "NbFrame"):
        if key not in entries:
            raise ValueError(f"{file} does not say {key}.")
    return {key: int(entries[key]) for key in ("ED", "ES", "NbFrame")}


def _find_h5(source: Path) -> Download:
    volumes: dict[tuple[str, str], Path] = {}
    slices: dict[tuple[str, str], dict[int, Path]] = defaultdict(dict)
    for file in sorted(source.rglob("*.h5")):
        match = H5_NAME.fullmatch(file.name)
        if match is None:
            raise ValueError(f"{file} is not named patientNNN_frameFF[_slice_S].h5.")
        patient, frame, number = match.groups()
        of_frame: dict = volumes if number is None else slices[patient, frame]
        other = of_frame.setdefault((patient, frame) if number is None else int(number), file)
        if other != file:
            raise ValueError(f"{other} and {file} hold the same: move one away.")
    cases = []
    for patient, frame in sorted({*volumes, *slices}):
        if (patient, frame) in volumes:
            files: tuple[Path, ...] = (volumes[patient, frame],)
        else:
            numbered = slices[patient, frame]
            expected = range(min(numbered), min(numbered) + len(numbered))
            gaps = sorted(set(expected) - set(numbered))
            if gaps:
                raise ValueError(f"{source}: slice {gaps[0]} of {patient}_{frame} is missing.")
            files = tuple(numbered[number] for number in sorted(numbered))
        cases.append(RawCase(f"{patient}_{frame}", "Tr", patient, files, files))
    there = {case.patient for case in cases}
    missing = [p for number in PATIENTS["training"] if (p := f"patient{number:03d}") not in there]
    lost = " x ".join(f"{edge:g}" for edge in LOST_SPACING)
    return Download(
        cases,
        missing,
        [f"h5 files do not keep the voxel spacing: {lost} mm is written. Measure in voxels."],
    )


def write(case: RawCase, image_target: Path, label_target: Path | None) -> None:
    """Write one case, see ``Source``."""
    if case.image[0].suffix == ".h5":
        _write_h5(case, image_target, label_target)
    else:
        write_nifti_case(case, image_target, label_target, LABELS)


def _write_h5(case: RawCase, image_target: Path, label_target: Path | None) -> None:
    image, label = (np.stack(arrays) for arrays in zip(*map(_read_h5, case.image), strict=True))
    if len(case.image) == 1:
        image, label = image[0], label[0]
    if image.ndim != 3 or image.shape != label.shape:
        raise ValueError(
            f"{case.image[0]}: image {image.shape} and label {label.shape} are no volume."
        )
    require_known_labels(label, LABELS, case.image[0])
    if not np.isfinite(image).all():
        raise ValueError(f"{case.image[0]} holds NaN or infinite values.")
    integers = recover_integers(image)
    for array, target in ((label.astype(np.uint8), label_target), (integers, image_target)):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing(LOST_SPACING)
        sitk.WriteImage(volume, str(target))


def _read_h5(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise ValueError(
            f"Reading {file} needs h5py: pip install h5py, or take the official download."
        ) from None
    try:
        with h5py.File(file) as content:
            return content["image"][()], content["label"][()]
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no h5 file with image and label: {error}") from None


def recover_integers(image: np.ndarray, tolerance: float = 0.02) -> np.ndarray:
    """Undo the min-max scaling of an integer image, up to its offset and a common factor.

    The scaled values are whole multiples of one step; the smallest difference between neighbouring
    values is the first guess of it. More and more values refine it, the small ones first: a wrong
    step is off by the more steps the larger the value.

    Args:
        image: scaled values of one volume, its smallest 0.
        tolerance: by which a value may miss a whole number of steps.

    Returns:
        uint16; the image as float32 where its values are no such multiples.
    """
    values = np.unique(image.astype(np.float64))
    values = values - values[0]
    if len(values) < 2:
        return np.zeros(image.shape, np.uint16)
    step = float(np.diff(values).min())
    bound = 8 * step
    while bound < 4 * values[-1]:
        small = values[values <= bound]
        if len(small) > 1:
            step = float(small @ small / (small @ np.round(small / step)))
        bound *= 4
    multiples = np.round(values / step)
    if (
        np.abs(values / step - multiples).max() > tolerance
        or multiples[-1] > np.iinfo(np.uint16).max
    ):
        return image.astype(np.float32)
    scaled = (image.astype(np.float64) - float(image.min())) / step
    return np.round(scaled).astype(np.uint16)


ACDC = Source(
    name="ACDC",
    channel_names={0: "MRI"},
    labels=LABELS,
    file_ending=".nii.gz",
    reference="Bernard et al., IEEE TMI 2018, CC BY-NC-SA 4.0",
    find=find,
    write=write,
)
