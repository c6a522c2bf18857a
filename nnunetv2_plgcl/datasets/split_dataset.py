"""What ``nnUNetv2_plgcl_split`` does: draw a dataset's split, say how, write it. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.cache import cache_folder
from nnunetv2_plgcl.datasets.check.labels import check_labels
from nnunetv2_plgcl.datasets.description import read_dataset
from nnunetv2_plgcl.datasets.files import (
    dataset_name,
    nnunet_folder,
    require_replaceable,
    split_file,
    write_group_pattern,
    write_split,
)
from nnunetv2_plgcl.datasets.groups import (
    describe_groups,
    group_cases,
    group_matching,
    guess_group_pattern,
)
from nnunetv2_plgcl.datasets.labels import CACHE as LABELS_CACHE
from nnunetv2_plgcl.datasets.labels import label_files, label_values
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.raw import cases_without_label, is_hidden, training_cases
from nnunetv2_plgcl.datasets.split import (
    describe_fold,
    describe_numbers,
    describe_pulled,
    make_split,
    parse_amount,
)
from nnunetv2_plgcl.datasets.strict import hide_labels, is_strict, restore_labels
from nnunetv2_plgcl.datasets.unlabelled import UNLABELLED_IMAGES
from nnunetv2_plgcl.pseudolabels.record import RECORD, TRUE, pseudo_labels, read_record

COMMAND = "nnUNetv2_plgcl_split"
DEFAULT_VALIDATION = ["0.2"]  # of all groups


def split_dataset(
    dataset: str,
    labelled: Sequence[str] | None,
    val: Sequence[str] | None,
    *,
    group_by: str | None = None,
    folds: int = 1,
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Write ``splits_final.json`` and print what is in it and what comes next.

    Args:
        dataset: number or full name.
        labelled, val: words for ``parse_amount``. None: of a dataset with pseudo-labels all cases
            with a true or corrected label, and the validation cases of the model that wrote it;
            else a fifth of the groups for validation.
        group_by: pattern for ``group_cases``; guessed if None.
        folds, seed: for ``make_split``.
        strict: hide the labels of unlabelled cases from planning too.
        force: replace another split.

    Raises:
        ValueError: no such dataset or split.
        OSError: something cannot be written; there is another split and ``force`` is not set.
    """
    name, cases = training_cases(dataset)
    raw = nnunet_folder("nnUNet_raw") / name
    if is_strict(raw):
        raise ValueError(
            f"Labels of {name} are hidden by --strict, so a split would leave those cases out. "
            f"First: {COMMAND} -d {dataset} --undo"
        )
    description = read_dataset(raw / "dataset.json")
    without_label = cases_without_label(raw, description, cases)
    file = split_file(name)
    pattern = group_by or guess_group_pattern(cases)
    groups = group_cases(cases, pattern)
    print(f"{name}: {describe_groups(groups, pattern, guessed=not group_by)}")
    pseudo, corrected = pseudo_labels(raw, description["file_ending"])
    if pseudo or corrected:
        print(
            f"{len(pseudo)} cases have pseudo-labels and count as unlabelled; {len(corrected)} "
            f"were corrected and count as labelled."
        )
    record = read_record(raw / RECORD) if pseudo or corrected else {}
    of_model = record.get("validation", []) if val is None else []
    validation = of_model or parse_amount(val or DEFAULT_VALIDATION)
    named = [] if isinstance(validation, int | float) else list(validation)
    if labelled is None and not (record and named):
        raise ValueError("--labelled is needed: how many groups of cases, or which.")
    no_label = [*without_label, *pseudo]
    amount = parse_amount(labelled) if labelled else _with_true_labels(groups, named + no_label)
    splits = make_split(
        cases, amount, validation, group_by=pattern, folds=folds, seed=seed,
        without_label=no_label,
    )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)  # a split may come before planning
    for sentence in describe_numbers(labelled or (), val or (), groups):
        print(sentence)
    for sentence in describe_pulled([*(labelled or ()), *(val or ())], groups):
        print(sentence)
    if without_label:
        _say_what_becomes_of(without_label, splits[0], strict)
    for number, fold in enumerate(splits):
        print(f"fold {number}: {describe_fold(fold, groups)}")
    validation_cases = [case for fold in splits for case in fold["val"]]
    _warn_of_seen_cases(record, validation_cases)
    images_un = raw / UNLABELLED_IMAGES
    if images := _images(images_un):
        _warn_of_patients_on_two_sides(images_un, images, pattern, validation_cases)
        _warn_of_labels_set_aside(len(set(splits[0]["unlabelled"]) - set(no_label)))
    _warn_of_labels(raw, file.parent, description, splits)
    hidden = list(splits[0]["unlabelled"])
    if strict:
        splits[0]["unlabelled"] = []  # those of imagesUn are unlabelled in every fold
    changed = require_replaceable(file, splits, force)
    if strict:
        hide_labels(raw, file.parent, hidden)
    if changed:
        backup = write_split(file, splits, force)
        print(f"Written (seed {seed}): {file}")
        if backup:
            print(f"The earlier split is kept in {backup}")
    else:
        print(f"Nothing to do: {file} already holds this split (seed {seed}).")
    write_group_pattern(file.parent, pattern)
    if strict:
        print(
            f"{len(hidden)} images moved to imagesUn, their labels to labelsUn ({COMMAND} "
            f"-d {dataset} --undo brings them back).\n"
            f"Next: nnUNetv2_plan_and_preprocess -d {dataset} -c 2d, then "
            f"nnUNetv2_plgcl_preprocess -d {dataset} -c 2d"
        )
    elif "plans" in record:  # its plans came with it, preprocessed cases did not
        configuration, plans = record["configuration"], record["plans"]
        print(
            f"Next: nnUNetv2_extract_fingerprint -d {dataset} && nnUNetv2_preprocess -d {dataset} "
            f"-plans_name {plans} -c {configuration} && nnUNetv2_train {dataset} {configuration} 0 "
            f"-tr nnUNetTrainerPLGCL -p {plans}"
        )
    else:
        planned = (file.parent / "dataset.json").is_file()  # nnU-Net's planner copies it
        plan = "" if planned else f"nnUNetv2_plan_and_preprocess -d {dataset} -c 2d && "
        print(f"Next: {plan}nnUNetv2_train {dataset} 2d 0 -tr nnUNetTrainerPLGCL")


def _with_true_labels(groups: Mapping[str, Sequence[str]], others: Sequence[str]) -> list[str]:
    """Groups that are not among the others, and of which not all cases are."""
    return [
        group
        for group, members in groups.items()
        if group not in others and not set(members) <= set(others)
    ]


def _warn_of_seen_cases(record: Mapping[str, Any], validation: Sequence[str]) -> None:
    """The model that wrote pseudo-labels has learnt from labelled cases, so these cannot validate
    what learns from it."""
    true = {case for case, of in record.get("cases", {}).items() if of["kind"] == TRUE}
    seen = sorted(set(validation) & (true - set(record.get("validation", ()))))
    if seen:
        print(
            f"Warning: {some(seen)} in validation, but the model that wrote the pseudo-labels was "
            f"trained on it: scores will be too high. Without --val its own validation cases are "
            f"taken."
        )


def undo_strict(dataset: str) -> None:
    """Bring hidden labels back and print what comes next.

    Raises:
        ValueError: as ``restore_labels`` does; no such dataset.
    """
    name = dataset_name(dataset)
    cases = restore_labels(
        nnunet_folder("nnUNet_raw") / name, nnunet_folder("nnUNet_preprocessed") / name
    )
    print(f"{len(cases)} images and their labels are back in imagesTr and labelsTr.")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {dataset} -c 2d")


def _say_what_becomes_of(
    without_label: Sequence[str], fold: Mapping[str, Sequence[str]], strict: bool
) -> None:
    """
    Raises:
        ValueError: ``--strict`` would leave an image without a label in imagesTr.
    """
    left_out = sorted(set(without_label) - set(fold["unlabelled"]))
    if strict and left_out:
        raise ValueError(
            f"{some(left_out)}: no label, but their patients are in validation, so they can be "
            f"neither labelled nor unlabelled, and nnU-Net cannot plan with them. Move them out "
            f"of imagesTr, or name other patients with --val."
        )
    if left_out:
        print(f"{some(left_out)}: no label and of validation patients, so in no part of fold 0.")
    if not strict:
        print(
            f"Warning: {some(without_label)} of imagesTr without a label: unlabelled, but nnU-Net "
            f"cannot plan a dataset with them. --strict moves them to {UNLABELLED_IMAGES}."
        )


def _warn_of_labels(
    raw: Path,
    preprocessed: Path,
    dataset: dict,
    splits: Sequence[Mapping[str, Sequence[str]]],
) -> None:
    """Labels of zeros, which users are told to write for unlabelled cases, and unknown values."""
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    cases = sorted({case for fold in splits for part in ("train", "val") for case in fold[part]})
    files = label_files(raw, preprocessed, dataset, cases)
    if not files:
        return
    try:
        reader = determine_reader_writer_from_dataset_json(
            dataset, str(min(files.values())), verbose=False
        )
    except RuntimeError:  # planning will say so
        return
    cache = cache_folder(preprocessed) / LABELS_CACHE
    values = label_values(files, reader, cache, default_num_processes)
    for finding in check_labels(values, dataset):
        print(f"Warning: {finding.text}")


def _images(folder: Path) -> list[str]:
    """Names of its files."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if not is_hidden(name)]


def _warn_of_patients_on_two_sides(
    folder: Path, images: Sequence[str], pattern: str, validation: Sequence[str]
) -> None:
    both = sorted(set(group_matching(images, pattern)) & set(group_cases(validation, pattern)))
    if both:
        print(
            f"Warning: {len(both)} validation patients have images in {folder} too, {both[0]} for "
            f"one. Move those away, or name other patients with --val; a training will refuse them."
        )


def _warn_of_labels_set_aside(number: int) -> None:
    """Who has unlabelled images needs no split, and would lose labels by one."""
    if number:
        print(
            f"Warning: images of {UNLABELLED_IMAGES} are unlabelled in every fold already, and "
            f"this split sets the labels of {number} cases aside as well. To learn from all "
            f"labels, delete splits_final.json: nnU-Net's own folds divide the labelled cases."
        )
