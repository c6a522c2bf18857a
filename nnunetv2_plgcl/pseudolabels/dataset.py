"""True and pseudo-labels side by side as an ordinary nnU-Net dataset. Source: ours."""

from __future__ import annotations

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
from nnunetv2_plgcl.pseudolabels.record import RECORD, TRUE, checksum
from nnunetv2_plgcl.pseudolabels.sources import Sources


def require_free(number: int) -> None:
    """
    Raises:
        ValueError: a dataset has this number.
    """
    try:
        taken = dataset_name(str(number))
    except ValueError:
        return
    raise ValueError(f"{taken} has the number {number} already: give another with --new-dataset.")


def write_dataset(
    number: int,
    source: str,
    plans_name: str,
    dataset: Mapping[str, Any],
    sources: Sources,
    labels: Mapping[str, Path],
    record: Mapping[str, Any],
    pattern: str | None,
) -> str:
    """Write a raw dataset, its split and its plans, which are those of the source.

    Args:
        number: of the new dataset.
        source: full name of the dataset that the cases come from.
        plans_name: of the source, to go on with.
        dataset: content of the new dataset.json, without a number of cases.
        sources: files of the source.
        labels: pseudo-labels by case.
        record: to be noted beside them; true labels are added.
        pattern: what in a case name is the patient.

    Returns:
        Full name of the dataset.

    Raises:
        ValueError: the number is taken.
    """
    require_free(number)
    name = f"Dataset{number:03d}_{source.partition('_')[2]}Pseudo"
    raw = nnunet_folder("nnUNet_raw") / name
    incomplete = raw.with_name(f".{name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr"):
        (incomplete / folder).mkdir(parents=True)
    ending = dataset["file_ending"]
    pseudo = {case: sources.unlabelled[case] for case in labels}
    images = {**sources.labelled, **sources.validation, **pseudo}
    all_labels = {**sources.labels, **labels}
    cases = dict(record["cases"])
    for case, files in images.items():
        for channel, file in enumerate(files):
            _link(file, incomplete / "imagesTr" / f"{case}_{channel:04d}{ending}")
        of_case = incomplete / "labelsTr" / f"{case}{ending}"
        shutil.copyfile(all_labels[case], of_case)
        for folder, beside in (("imagesTr", files[0]), ("labelsTr", all_labels[case])):
            for file in companions(beside.parent, ending, [case]).get(case, []):
                shutil.copyfile(file, incomplete / folder / file.name)
        if case not in cases:
            cases[case] = {"kind": TRUE, "sha256": checksum(of_case)}
    write_json(incomplete / "dataset.json", {**dataset, "numTraining": len(images)})
    write_json(incomplete / RECORD, {**record, "cases": cases})
    os.replace(incomplete, raw)
    split = split_file(name, make_folder=True)
    if sources.validation.keys() != sources.labelled.keys():  # else fold all
        train = sorted({*sources.labelled, *labels})
        write_split(split, [{"train": train, "val": sorted(sources.validation)}], force=True)
    write_group_pattern(split.parent, pattern or EVERY_CASE_ITSELF)
    move_plans_between_datasets(source, name, plans_name, plans_name)
    shutil.copyfile(raw / "dataset.json", split.parent / "dataset.json")
    return name


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, target)
