"""True and pseudo-labels side by side as an ordinary nnU-Net dataset. Source: ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
    move_plans_between_datasets,
)

from nnunetv2_plgcl.datasets.files import (
    dataset_name,
    nnunet_folder,
    split_file,
    write_group_pattern,
    write_json,
    write_split,
)
from nnunetv2_plgcl.datasets.groups import EVERY_CASE_ITSELF
from nnunetv2_plgcl.datasets.raw import companions
from nnunetv2_plgcl.pseudolabels.record import RECORD, TRUE, checksum, read_record
from nnunetv2_plgcl.pseudolabels.sources import Sources


def name_of(number: int, source: str) -> str:
    """Full name of the new dataset.

    Args:
        number: of it.
        source: full name of the dataset that its cases come from.
    """
    return f"Dataset{number:03d}_{source.partition('_')[2]}Pseudo"


def require_free(number: int, source: str, head: Mapping[str, Any]) -> None:
    """Refuse a number that a dataset has, unless it is what an earlier call wrote.

    Args:
        number: of the dataset to be written.
        source: as for ``name_of``.
        head: what its record must say, to be taken for that.

    Raises:
        ValueError: another dataset has this number.
    """
    try:
        taken = dataset_name(str(number))
    except ValueError:
        return
    record = nnunet_folder("nnUNet_raw") / taken / RECORD
    if taken == name_of(number, source) and record.is_file():
        noted = read_record(record)
        if all(noted.get(key) == value for key, value in head.items()):
            return
    raise ValueError(f"{taken} has the number {number} already: give another with --new-dataset.")


def write_dataset(
    number: int,
    source: str,
    plans_name: str,
    configuration: str,
    dataset: Mapping[str, Any],
    sources: Sources,
    labels: Mapping[str, Path],
    record: Mapping[str, Any],
    pattern: str | None,
) -> str:
    """Write a raw dataset, its split and its plans, which are those of the source; or what of it an
    earlier call has left undone.

    Args:
        number: of the new dataset.
        source: full name of the dataset that the cases come from.
        plans_name, configuration: of the source, to go on with.
        dataset: content of the new dataset.json, without a number of cases.
        sources: files of the source.
        labels: pseudo-labels by case.
        record: to be noted beside them; true labels are added.
        pattern: what in a case name is the patient.

    Returns:
        Full name of the dataset.

    Raises:
        ValueError: the dataset is there, with other labels.
    """
    name = name_of(number, source)
    raw = nnunet_folder("nnUNet_raw") / name
    true = {case: {"kind": TRUE, "sha256": checksum(file)} for case, file in sources.labels.items()}
    record = {
        **record, "cases": {**record["cases"], **true}, "validation": sorted(sources.validation),
        "configuration": configuration, "plans": plans_name,
    }  # fmt: skip
    if not raw.is_dir():
        _write_raw(raw, dataset, sources, labels, record)
    elif read_record(raw / RECORD) != json.loads(json.dumps(record)):
        raise ValueError(
            f"{name} holds other labels than there are now: give another number with --new-dataset."
        )
    split = split_file(name)
    split.parent.mkdir(parents=True, exist_ok=True)
    if not split.is_file() and sources.validation.keys() != sources.labelled.keys():
        train = sorted({*sources.labelled, *labels})  # else fold all
        write_split(split, [{"train": train, "val": sorted(sources.validation)}])
    write_group_pattern(split.parent, pattern or EVERY_CASE_ITSELF)
    move_plans_between_datasets(source, name, plans_name, plans_name)
    shutil.copyfile(raw / "dataset.json", split.parent / "dataset.json")
    return name


def _write_raw(
    raw: Path,
    dataset: Mapping[str, Any],
    sources: Sources,
    labels: Mapping[str, Path],
    record: Mapping[str, Any],
) -> None:
    """Into another folder, which then gets its name."""
    incomplete = raw.with_name(f".{raw.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr"):
        (incomplete / folder).mkdir(parents=True)
    ending = dataset["file_ending"]
    pseudo = {case: sources.unlabelled[case] for case in labels}
    images = {**sources.labelled, **sources.validation, **pseudo}
    all_labels = {**sources.labels, **labels}
    for case, files in images.items():
        for channel, file in enumerate(files):
            _link(file, incomplete / "imagesTr" / f"{case}_{channel:04d}{ending}")
        of_case = incomplete / "labelsTr" / f"{case}{ending}"
        shutil.copyfile(all_labels[case], of_case)
        for folder, beside in (("imagesTr", files[0]), ("labelsTr", all_labels[case])):
            for file in companions(beside.parent, ending, [case]).get(case, []):
                shutil.copyfile(file, incomplete / folder / file.name)
    write_json(incomplete / "dataset.json", {**dataset, "numTraining": len(images)})
    write_json(incomplete / RECORD, record)
    os.replace(incomplete, raw)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, target)
