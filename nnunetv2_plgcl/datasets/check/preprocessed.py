"""Preprocessed files: are they there, can they be read, have they the network's channels?

All of them, because a training opens those of unlabelled cases after the warm-up and those of
validation cases at its end. Of unlabelled cases the image alone, never the segmentation beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.cache import read_once, recall
from nnunetv2_plgcl.datasets.check.finding import Finding
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.preprocessed import read_header, read_properties, read_values

HEADERS = "plgcl_headers.json"
VALUES = "plgcl_values.json"
PROPERTIES = "plgcl_properties.json"
THREADS = 8


def check_preprocessed(
    images: Mapping[str, Path],
    segmentations: Mapping[str, Path],
    channels: int,
    configuration: str,
    mend: str,
    cache: Path,
    processes: int | None = None,
) -> Iterator[Finding]:
    """
    Args:
        images: ``.b2nd`` file of each case.
        segmentations: ``_seg.b2nd`` file of each labelled and validation case.
        channels: that an image must have.
        configuration: to be named.
        mend: what to do about files that are missing or damaged.
        cache: folder to remember in.
        processes: to read all values with; None to read headers only, and recall what was found
            before in files that did not change.
    """
    files = {"image": images, "segmentation": segmentations}
    for what, of in files.items():
        missing = [case for case, file in of.items() if not file.is_file()]
        if missing:
            yield Finding(
                "error",
                f"{some(missing)}: {'' if what == 'image' else 'segmentation '}not preprocessed "
                f"for configuration {configuration}.{_nearest(missing[0], of)} {mend}",
            )
    # the same case may lie in several folders, one for each configuration
    there = {str(file): (file,) for of in files.values() for file in of.values() if file.is_file()}
    watched = {name: list(paths) for name, paths in there.items()}
    headers = read_once(
        read_header, there, watched, cache / HEADERS, THREADS, "Opening cases", threads=True
    )
    shapes: dict[str, dict[str, list[int]]] = {what: {} for what in files}
    for what, of in files.items():
        for case, file in of.items():
            header = headers.get(str(file), {})
            if "error" in header:
                yield Finding("error", f"Case {case}: {header['error']} {mend}")
            elif header:
                shapes[what][case] = header["shape"]
    wrong = [case for case, shape in shapes["image"].items() if shape[0] != channels]
    if wrong:
        has = shapes["image"][wrong[0]][0]
        yield Finding(
            "error",
            f"{some(wrong)}: {has} channels preprocessed, but dataset.json has {channels}. {mend}",
        )
    for case in shapes["image"].keys() & shapes["segmentation"].keys():
        image, segmentation = shapes["image"][case], shapes["segmentation"][case]
        if image[1:] != segmentation[1:]:
            yield Finding(
                "error",
                f"Case {case}: the preprocessed image has {image[1:]} voxels, its segmentation "
                f"{segmentation[1:]}. {mend}",
            )
    whole = {str(files[what][case]): case for what in files for case in shapes[what]}
    watched = {name: [Path(name)] for name in whole}
    if processes is None:
        values = recall(watched, cache / VALUES)
    else:
        readable = {name: (Path(name),) for name in whole}
        values = read_once(
            read_values, readable, watched, cache / VALUES, processes, "Reading preprocessed cases"
        )
    for name, found in values.items():
        if "error" in found:
            yield Finding("error", f"Case {whole[name]}: {found['error']} {mend}")
    not_finite = [whole[name] for name, found in values.items() if not found.get("finite", True)]
    if not_finite:
        yield Finding("error", f"{some(not_finite)}: NaN or infinite once preprocessed. {mend}")


def properties_of(files: Mapping[str, Path], cache: Path) -> dict[str, dict[str, Any]]:
    """What ``read_properties`` says of each case.

    Args:
        files: ``.pkl`` file of each case.
        cache: folder to remember in.
    """
    arguments = {case: (file,) for case, file in files.items()}
    watched = {case: [file] for case, file in files.items()}
    return read_once(
        read_properties, arguments, watched, cache / PROPERTIES, THREADS, "Opening cases",
        threads=True,
    )  # fmt: skip


def _nearest(case: str, files: Mapping[str, Path]) -> str:
    """A guess at what was meant, where a split was written by hand."""
    there = [file.name.removesuffix(".b2nd") for file in files[case].parent.glob("[!.]*.b2nd")]
    nearest = difflib.get_close_matches(case, there, n=1)
    return f" Is {nearest[0]} meant?" if nearest else ""
