"""Write a download as a raw dataset of nnU-Net, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.convert.acdc import ACDC
from nnunetv2_plgcl.datasets.convert.crag import CRAG
from nnunetv2_plgcl.datasets.convert.hippocampus import HIPPOCAMPUS
from nnunetv2_plgcl.datasets.convert.kits19 import KITS19
from nnunetv2_plgcl.datasets.convert.source import (
    Download,
    RawCase,
    Source,
    refuse_collisions,
    unpacked,
)
from nnunetv2_plgcl.datasets.files import (
    nnunet_folder,
    read_json,
    require_replaceable,
    states_of,
    write_json,
    write_split,
)
from nnunetv2_plgcl.datasets.names import first
from nnunetv2_plgcl.datasets.strict import hide_labels, is_strict, restore_labels
from nnunetv2_plgcl.datasets.unlabelled import UNLABELLED_IMAGES
from nnunetv2_plgcl.workers import mend_and_run_again, naming, run_all

SOURCES: dict[str, Source] = {
    "acdc": ACDC,
    "kits19": KITS19,
    "crag": CRAG,
    "hippocampus": HIPPOCAMPUS,
}
PAPER = "paper"
MANIFEST = "plgcl_conversion.json"  # of a conversion that is not complete


@dataclass(frozen=True)
class Protocol:
    """A published split.

    Attributes:
        source: where the lists come from.
        validation, test: patients; all others are training patients.
        labelled: the labelled training patients, by their number.
    """

    source: str
    validation: list[str]
    test: list[str]
    labelled: dict[str, list[str]]


def read_protocol(dataset: str) -> Protocol:
    """The paper's split of one of ``SOURCES``.

    Raises:
        ValueError: the paper has none.
    """
    file = resources.files("nnunetv2_plgcl.datasets.convert") / "protocols" / f"{dataset}.json"
    if not file.is_file():
        raise ValueError(
            f"The paper has no split of {dataset}: leave out --protocol, and split by "
            f"nnUNetv2_plgcl_split."
        )
    return Protocol(**json.loads(file.read_text(encoding="utf-8")))


def convert(
    dataset: str,
    folder: Path,
    dataset_id: int,
    *,
    protocol: str | None = None,
    cine: bool = False,
    processes: int = 4,
    show_progress: bool = True,
) -> list[str]:
    """Convert a download.

    Cases are written into a hidden folder that gets its name when all are there. After an
    interruption call again: what was written is kept, as long as it comes from the same files.

    Args:
        dataset: key of ``SOURCES``.
        folder: of the download, or a tar archive of it, which is begun anew after an interruption.
        dataset_id: 1 to 999, for nnU-Net.
        protocol: ``PAPER`` to write the paper's split, one fold for each number of labelled
            patients, with its test patients in imagesTs, and beside dataset.json a split.json for
            ``scripts/benchmark.py`` where no labels are hidden; None to take the official parts.
        cine: see ``acdc.find``; only with a protocol, as frames of validation patients must not
            become unlabelled images.
        processes: worker processes.
        show_progress: a bar on stderr.

    Returns:
        Lines that say what was done.

    Raises:
        ValueError: a bad folder, number or case, with the file's name.
        FileExistsError: a split of that dataset exists already.
        OSError: the target cannot be written.
        RuntimeError: cases that could not be converted, with their files' names.
    """
    if not 1 <= dataset_id <= 999:
        raise ValueError(f"A dataset's number lies between 1 and 999, but is {dataset_id}.")
    if folder.is_file():
        with unpacked(folder) as inside:
            return convert(
                dataset, inside, dataset_id, protocol=protocol, cine=cine,
                processes=processes, show_progress=show_progress,
            )  # fmt: skip
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    source = SOURCES[dataset]
    raw_root = nnunet_folder("nnUNet_raw")
    name = f"Dataset{dataset_id:03d}_{source.name}"
    taken = sorted(raw_root.glob(f"Dataset{dataset_id:03d}_*"))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):  # nnU-Net looks there for names too
        others = nnunet_folder(variable).glob(f"Dataset{dataset_id:03d}_*")
        taken += sorted(other for other in others if other.name != name)
    if taken:
        raise ValueError(f"Number {dataset_id} is taken by {taken[0]}: choose another with -d.")
    if cine and protocol is None:
        raise ValueError(
            "--cine needs --protocol paper, which says who is in validation: frames of those "
            "patients must not become unlabelled images."
        )
    download = source.find(folder, cine)
    cases, splits, lines = download.cases, None, _describe(source, download)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    hidden: list[str] = []
    if protocol is not None:
        lists = read_protocol(dataset)
        cases = apply_protocol(cases, lists)
        splits = protocol_splits(cases, lists)
        if source.strict:
            seen = {case for fold in splits for part in ("train", "val") for case in fold[part]}
            hidden = sorted(
                case.name for case in cases if case.part == "Tr" and case.name not in seen
            )
            splits = [
                {**f, "unlabelled": [c for c in f["unlabelled"] if c in seen]} for f in splits
            ]
        try:
            require_replaceable(preprocessed / "splits_final.json", splits, force=False)
        except FileExistsError:
            raise FileExistsError(f"{preprocessed} has another split: move it away.") from None
        lines += [f"Split: {lists.source}"]
        lines += [
            f"fold {fold}: {number} labelled patients" for fold, number in enumerate(lists.labelled)
        ]
    refuse_collisions(cases)

    if not any(case.part == "Tr" for case in cases):
        raise ValueError(f"{folder} holds no training case of {source.name}.")
    staging = raw_root / f".{name}.incomplete"
    if is_strict(staging):  # interrupted just before the end
        restore_labels(staging, preprocessed)
    _keep_what_still_holds(staging, source, [str(folder.resolve()), protocol, cine], cases)
    for part in {case.part for case in cases}:
        (staging / f"images{part}").mkdir(parents=True, exist_ok=True)
    for part in {case.part for case in cases if case.label}:
        (staging / f"labels{part}").mkdir(parents=True, exist_ok=True)
    arguments = {case.name: (dataset, case, staging) for case in cases}
    failures = run_all(write_case, arguments, processes, f"Converting {source.name}", show_progress)
    if failures:
        if len(failures) == len(cases):
            shutil.rmtree(staging)
        raise RuntimeError(mend_and_run_again(failures, len(cases)))
    _write_dataset_json(source, staging, sum(case.part == "Tr" for case in cases))
    if splits is not None:
        if hidden:
            hide_labels(staging, preprocessed, hidden)
            lines.append(
                f"Labels of {len(hidden)} cases that are unlabelled in every fold are hidden from "
                f"planning (nnUNetv2_plgcl_split -d {dataset_id} --undo brings them back)."
            )
        else:
            write_json(staging / "split.json", split_for_the_benchmark(splits, lists))
        preprocessed.mkdir(parents=True, exist_ok=True)
        write_split(preprocessed / "splits_final.json", splits)
    (staging / MANIFEST).unlink()
    os.rename(staging, raw_root / name)
    then = f", then nnUNetv2_plgcl_preprocess -d {dataset_id} -c 2d"
    has_unlabelled_images = (raw_root / name / UNLABELLED_IMAGES).is_dir()
    return [
        *lines,
        f"Written: {raw_root / name}",
        f"Next: nnUNetv2_plan_and_preprocess -d {dataset_id} -c 2d"
        + (then if has_unlabelled_images else ""),
    ]


def _keep_what_still_holds(
    staging: Path, source: Source, request: list, cases: list[RawCase]
) -> None:
    """Remove from an interrupted conversion what this one would write otherwise."""
    origins = {case.name: _origin(case) for case in cases}
    now: dict[str, Any] = {"request": request, "cases": origins}
    manifest = staging / MANIFEST
    try:
        before = read_json(manifest)
    except (FileNotFoundError, ValueError):
        before = {}
    if before.get("request") != now["request"]:
        shutil.rmtree(staging, ignore_errors=True)
    for name, origin in before.get("cases", {}).items():
        if origins.get(name) != origin:
            for file in (f"images{origin[0]}/{name}_0000", f"labels{origin[0]}/{name}"):
                (staging / f"{file}{source.file_ending}").unlink(missing_ok=True)
    staging.mkdir(exist_ok=True)
    write_json(manifest, now)


def _origin(case: RawCase) -> list:
    """Changes where a case would be written elsewhere, or its files were replaced."""
    return [case.part, case.frame, *states_of((*case.image, *(case.label or ())))]


def apply_protocol(cases: list[RawCase], protocol: Protocol) -> list[RawCase]:
    """Sort cases into training and test by the protocol's lists.

    Cases that were released as test cases take no part, nor do unlabelled frames of validation
    and test patients.

    Raises:
        ValueError: a patient of the lists is not there.
    """
    released = [case for case in cases if case.label is not None and case.part == "Tr"]
    official_test = [case for case in cases if case.label is not None and case.part == "Ts"]
    there = {case.patient for case in released}
    listed = set().union(protocol.validation, protocol.test, *protocol.labelled.values())
    absent = sorted(listed - there)
    if absent:
        raise ValueError(
            f"The paper's split needs {first(absent)}, which the download lacks. Complete it, or "
            f"leave out --protocol."
        )
    if not protocol.test:  # the official test set is the paper's
        sorted_in = released + official_test
    else:
        sorted_in = [replace(case, part="Ts") if case.patient in protocol.test else case
                     for case in released]  # fmt: skip
    held_out = {*protocol.validation, *protocol.test}
    frames = [case for case in cases if case.part == "Un" and case.patient not in held_out]
    return sorted_in + frames


def protocol_splits(cases: list[RawCase], protocol: Protocol) -> list[dict[str, list[str]]]:
    """One fold for each number of labelled patients."""
    training = [case for case in cases if case.part == "Tr"]
    splits = []
    for labelled in protocol.labelled.values():
        fold: dict[str, list[str]] = {"train": [], "val": [], "unlabelled": []}
        for case in training:
            if case.patient in labelled:
                fold["train"].append(case.name)
            elif case.patient in protocol.validation:
                fold["val"].append(case.name)
            else:
                fold["unlabelled"].append(case.name)
        splits.append({part: sorted(names) for part, names in fold.items()})
    return splits


def split_for_the_benchmark(
    splits: Sequence[dict[str, list[str]]], protocol: Protocol
) -> dict[str, Any]:
    """The same as ``scripts/benchmark.py`` reads it: training, validation and labelled cases."""
    return {
        "source": protocol.source,
        "train": sorted(splits[0]["train"] + splits[0]["unlabelled"]),
        "val": splits[0]["val"],
        "labelled": {
            number: fold["train"] for number, fold in zip(protocol.labelled, splits, strict=True)
        },
    }


def write_case(dataset: str, case: RawCase, folder: Path) -> None:
    """Write one case under temporary names, then rename; do nothing where it is there already."""
    source = SOURCES[dataset]
    image = folder / f"images{case.part}" / f"{case.name}_0000{source.file_ending}"
    if image.is_file():
        return
    temporary = image.with_name(f".{image.name}")
    label = folder / f"labels{case.part}" / f"{case.name}{source.file_ending}"
    temporary_label = label.with_name(f".{label.name}") if case.label else None
    try:
        with naming(case.image[0]):
            source.write(case, temporary, temporary_label)
        if temporary_label is not None:
            os.replace(temporary_label, label)
        os.replace(temporary, image)  # the image last: it makes the case a whole one
    finally:
        temporary.unlink(missing_ok=True)
        if temporary_label is not None:
            temporary_label.unlink(missing_ok=True)


def _describe(source: Source, download: Download) -> list[str]:
    counts = {
        "training": sum(case.part == "Tr" for case in download.cases),
        "test": sum(case.part == "Ts" for case in download.cases),
        "unlabelled": sum(case.part == "Un" for case in download.cases),
    }
    found = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    lines = [f"{source.name} ({source.reference}): {found} cases found."]
    if download.missing:
        first = ", ".join(download.missing[:5])
        more = f" and {len(download.missing) - 5} more" if len(download.missing) > 5 else ""
        lines.append(f"Missing of the official release: {first}{more}.")
    return [*lines, *download.notes]


def _write_dataset_json(source: Source, folder: Path, training: int) -> None:
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    generate_dataset_json(
        str(folder),
        dict(source.channel_names),
        dict(source.labels),
        training,
        source.file_ending,
        dataset_name=source.name,
        reference=source.reference,
        license=source.reference,
        converted_by="nnunetv2-plgcl",
    )
