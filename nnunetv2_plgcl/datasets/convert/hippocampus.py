"""Hippocampus, Task04 of the Medical Segmentation Decathlon: ``Task04_Hippocampus.tar`` or the
folder in it, with ``imagesTr``, ``labelsTr``, ``imagesTs`` and the Decathlon's ``dataset.json``.

nnU-Net's own ``nnUNetv2_convert_MSD_dataset`` writes the same files, but looks into none of them
and leaves half of them after an interruption.
"""

from __future__ import annotations

from pathlib import Path

from nnunetv2_plgcl.datasets.convert.source import Download, RawCase, Source, write_nifti_case
from nnunetv2_plgcl.datasets.files import read_json

TASK = "Task04_Hippocampus"
ENDING = ".nii.gz"
LABELS = {"background": 0, "anterior": 1, "posterior": 2}


def find(source: Path, cine: bool) -> Download:
    """List the cases of a download; those that were released without a label are test cases.

    Args:
        source: the unpacked folder, or the one that it lies in.
        cine: there is none.

    Raises:
        ValueError: it is no such folder, or an image lacks its label.
    """
    if cine:
        raise ValueError("--cine is for ACDC: the hippocampus has no 4D images.")
    folder = next((f for f in (source / TASK, source) if (f / "imagesTr").is_dir()), None)
    if folder is None or not (folder / "dataset.json").is_file():
        raise ValueError(
            f"{source} is no download of {TASK}: imagesTr or dataset.json is not there."
        )
    cases = []
    for image in _images(folder / "imagesTr"):
        label = folder / "labelsTr" / image.name
        if not label.is_file():
            raise ValueError(f"{label} is missing.")
        name = image.name.removesuffix(ENDING)
        cases.append(RawCase(name, "Tr", name, (image,), (label,)))
    for image in _images(folder / "imagesTs"):
        name = image.name.removesuffix(ENDING)
        cases.append(RawCase(name, "Ts", name, (image,)))
    there = {case.name for case in cases}
    return Download(cases, sorted(_released(folder / "dataset.json") - there))


def _images(folder: Path) -> list[Path]:
    """Without the files that macOS left in the archive, ``._NAME``."""
    return sorted(folder.glob(f"[!.]*{ENDING}"))


def _released(file: Path) -> set[str]:
    """Names of all cases, from the Decathlon's dataset.json."""
    content = read_json(file)
    try:
        images = [*(entry["image"] for entry in content["training"]), *content["test"]]
    except (KeyError, TypeError):
        raise ValueError(f"{file} is not the Decathlon's: it lists no training or test.") from None
    return {Path(image).name.removesuffix(ENDING) for image in images}


def write(case: RawCase, image_target: Path, label_target: Path | None) -> None:
    """Write one case, see ``Source``."""
    write_nifti_case(case, image_target, label_target, LABELS)


HIPPOCAMPUS = Source(
    name="Hippocampus",
    channel_names={0: "MRI"},
    labels=LABELS,
    file_ending=ENDING,
    reference="Antonelli et al., Nature Communications 2022, CC BY-SA 4.0",
    find=find,
    write=write,
)
