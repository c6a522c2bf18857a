"""Keep labels of unlabelled cases from nnU-Net's planning, which looks at every label it finds.

The fingerprint's intensity statistics come from voxels inside the labels, and normalise CT. So the
images move to ``imagesUn`` and their labels to ``labelsUn``, which nothing reads; a journal in the
raw dataset tells the way back. Source: ours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.description import read_dataset
from nnunetv2_plgcl.datasets.files import (
    dataset_number,
    inside,
    is_name,
    read_object,
    read_split,
    write_json,
)
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.raw import companions, labelled_images
from nnunetv2_plgcl.datasets.unlabelled import UNLABELLED_IMAGES

JOURNAL = "plgcl_strict.json"
HIDDEN_LABELS = "labelsUn"
FINGERPRINT = "dataset_fingerprint.json"


def is_strict(raw: Path) -> bool:
    """Whether labels of the dataset are hidden."""
    return (raw / JOURNAL).is_file()


def hide_labels(raw: Path, preprocessed: Path, cases: Sequence[str]) -> None:
    """Move images of training cases to ``imagesUn`` and their labels out of sight.

    What planning has already seen of them, the fingerprint and copies of labels, is removed: plan
    and preprocess again. Calling ``restore_labels`` undoes it, also after an interruption.

    Args:
        raw: folder of the dataset.
        preprocessed: likewise; it need not exist.
        cases: to hide.

    Raises:
        ValueError: labels are hidden already; dataset.json lists files, which stay where they are;
            a file would be replaced.
        OSError: a file cannot be moved; those that were are back in their place.
    """
    dataset, moves = _planned(raw, cases)
    journal = {"cases": sorted(cases), "numTraining": dataset.get("numTraining")}
    relative = [[str(a.relative_to(raw)), str(b.relative_to(raw))] for a, b in moves]
    write_json(raw / JOURNAL, {**journal, "moves": relative})
    try:
        for source, target in moves:
            target.parent.mkdir(exist_ok=True)
            os.rename(source, target)
    except OSError:
        _move_back(raw, moves)
        (raw / JOURNAL).unlink()
        raise
    remaining = len(labelled_images(raw, dataset))
    write_json(raw / "dataset.json", {**dataset, "numTraining": remaining})
    (preprocessed / FINGERPRINT).unlink(missing_ok=True)
    for case in cases:
        copy = preprocessed / "gt_segmentations" / f"{case}{dataset['file_ending']}"
        copy.unlink(missing_ok=True)


def restore_labels(raw: Path, preprocessed: Path) -> list[str]:
    """Undo ``hide_labels``, whole or interrupted.

    The cases become unlabelled ones of every fold in ``splits_final.json``; their copies among the
    preprocessed images of ``imagesUn`` are removed.

    Returns:
        The cases.

    Raises:
        ValueError: no labels are hidden; a file would be replaced, is missing, or lies outside the
            dataset.
    """
    if not is_strict(raw):
        raise ValueError(f"No labels in {raw} are hidden, so there is nothing to undo.")
    journal = _read_journal(raw)
    moves = [(inside(raw, source), inside(raw, target)) for source, target in journal["moves"]]
    for source, target in moves:
        if source.exists() and target.exists():
            raise ValueError(f"{source} and {target} are both there: move one away.")
        if not source.exists() and not target.exists():
            raise ValueError(
                f"{target} is not there to be moved back, so nothing was undone. Put it there; if "
                f"it is lost, take its move out of {raw / JOURNAL}."
            )
    dataset = read_object(raw / "dataset.json")
    _move_back(raw, moves)
    dataset["numTraining"] = journal["numTraining"]
    if dataset["numTraining"] is None:  # nnU-Net does not need it
        del dataset["numTraining"]
    write_json(raw / "dataset.json", dataset)
    cases: list[str] = journal["cases"]
    splits_file = preprocessed / "splits_final.json"
    splits = read_split(splits_file)
    if splits:
        for fold in splits:
            known = {*fold["train"], *fold["val"], *fold.get("unlabelled", [])}
            fold["unlabelled"] = sorted({*fold.get("unlabelled", []), *(set(cases) - known)})
        write_json(splits_file, splits)
    for folder in preprocessed.glob("*_unlabelled"):
        for case in cases:
            for ending in (".b2nd", ".pkl"):
                (folder / f"{case}{ending}").unlink(missing_ok=True)
        if not any(folder.glob("*.b2nd")):
            shutil.rmtree(folder)
    (preprocessed / FINGERPRINT).unlink(missing_ok=True)
    (raw / JOURNAL).unlink()
    return cases


def require_replanned(raw: Path, preprocessed: Path, labelled_folder: Path) -> None:
    """Refuse plans and preprocessed cases from before the labels were hidden.

    Args:
        raw: folder of the dataset.
        preprocessed: likewise.
        labelled_folder: preprocessed cases of the configuration.

    Raises:
        ValueError: with the command that plans again.
    """
    if not is_strict(raw):
        return
    hidden = _read_journal(raw)["cases"]
    stale = [case for case in hidden if (labelled_folder / f"{case}.b2nd").exists()]
    if stale or not (preprocessed / FINGERPRINT).is_file():
        what = f"{some(stale)} preprocessed" if stale else f"{preprocessed} planned"
        raise ValueError(
            f"{what} before --strict hid labels. Plan and preprocess again: "
            f"nnUNetv2_plan_and_preprocess -d {dataset_number(raw.name)}"
        )


def _read_journal(raw: Path) -> dict[str, Any]:
    file = raw / JOURNAL
    journal = read_object(file, "moves", "cases", "numTraining")
    cases, moves = journal["cases"], journal["moves"]
    if not isinstance(cases, list) or not all(map(is_name, cases)):
        raise ValueError(f"{file} is damaged: a case in it is no name.")
    if not isinstance(moves, list) or not all(map(_is_move, moves)):
        raise ValueError(f"{file} is damaged: a move in it is no pair of paths.")
    return journal


def _is_move(move: object) -> bool:
    return isinstance(move, list) and len(move) == 2 and all(isinstance(m, str) for m in move)


def _move_back(raw: Path, moves: Sequence[tuple[Path, Path]]) -> None:
    for source, target in moves:
        if target.exists():
            os.rename(target, source)
    for emptied in (raw / UNLABELLED_IMAGES, raw / HIDDEN_LABELS):
        if emptied.is_dir() and not any(emptied.iterdir()):
            emptied.rmdir()


def _planned(raw: Path, cases: Sequence[str]) -> tuple[dict, list[tuple[Path, Path]]]:
    """dataset.json and the files to move."""
    dataset = read_dataset(raw / "dataset.json")
    if is_strict(raw):
        raise ValueError(f"Labels in {raw} are hidden already: nnUNetv2_plgcl_split --undo first.")
    if "dataset" in dataset:
        raise ValueError(
            f"{raw}/dataset.json lists the files of each case, wherever they lie: they cannot be "
            f"moved. Take the unlabelled ones off that list and put them into {UNLABELLED_IMAGES}."
        )
    moves = list(_moves(raw, dataset, cases))
    for _, target in moves:
        if target.exists():
            raise ValueError(f"{target} exists already: move it away.")
    return dataset, moves


def _moves(raw: Path, dataset: dict, cases: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    ending = dataset["file_ending"]
    images = labelled_images(raw, dataset)
    beside_images, beside_labels = (
        companions(raw / part, ending, cases) for part in ("imagesTr", "labelsTr")
    )
    for case in cases:
        # the label first: without it nnU-Net refuses the case, with it alone it would not
        label = raw / "labelsTr" / f"{case}{ending}"
        if label.is_file():
            yield label, raw / HIDDEN_LABELS / label.name
        for file in beside_labels.get(case, []):
            yield file, raw / HIDDEN_LABELS / file.name
        for file in (*images[case], *beside_images.get(case, [])):
            yield file, raw / UNLABELLED_IMAGES / file.name
