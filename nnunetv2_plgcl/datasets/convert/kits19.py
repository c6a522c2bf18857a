"""KiTS19, kidney tumours in CT: ``case_NNNNN/imaging.nii.gz`` and ``segmentation.nii.gz``."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_plgcl.datasets.convert.source import (
    Download,
    RawCase,
    Source,
    subfolders,
    write_nifti_case,
)

WITH_LABEL, ALL = 210, 300  # cases of the official release
LABELS = {"background": 0, "kidney": 1, "tumor": 2}


def find(source: Path, cine: bool) -> Download:
    """List the cases of a download; those that were released without a label are test cases.

    Args:
        source: the folder of the download, or its ``data``.
        cine: there is none.

    Raises:
        ValueError: it is no such folder, or a file of a case is missing.
    """
    if cine:
        raise ValueError("--cine is for ACDC: KiTS19 has no 4D images.")
    folder = source / "data" if (source / "data").is_dir() else source
    found = {path.name: path for path in subfolders(folder, f"case_{5 * '[0-9]'}")}
    if not found:
        raise ValueError(f"{source} is no KiTS19 download: case_00000 is not there.")
    cases = []
    for name, path in found.items():
        image, label = path / "imaging.nii.gz", path / "segmentation.nii.gz"
        has_label = int(name.removeprefix("case_")) < WITH_LABEL
        for file in (image, label) if has_label else (image,):
            if not file.is_file():
                raise ValueError(f"{file} is missing. KiTS19's get_imaging fetches images.")
        if has_label:
            cases.append(RawCase(name, "Tr", name, (image,), (label,)))
        else:
            cases.append(RawCase(name, "Ts", name, (image,)))
    missing = [name for n in range(ALL) if (name := f"case_{n:05d}") not in found]
    return Download(cases, missing)


def write(case: RawCase, image_target: Path, label_target: Path | None) -> None:
    """Write one case, see ``Source``."""
    write_nifti_case(case, image_target, label_target, LABELS)


KITS19 = Source(
    name="KiTS19",
    channel_names={0: "CT"},
    labels=LABELS,
    file_ending=".nii.gz",
    reference="Heller et al., arXiv 1904.00445, CC BY-NC-SA 4.0",
    find=find,
    write=write,
    strict=True,
)
