"""Which cases get a pseudo-label, and which are labelled. Source: ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_plgcl.datasets.groups import group_matching, guess_group_pattern
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.raw import images_by_case, is_hidden
from nnunetv2_plgcl.datasets.unlabelled import UNLABELLED_IMAGES
from nnunetv2_plgcl.evaluation.folds import Fold


@dataclass(frozen=True)
class Sources:
    """Files of a raw dataset, by case.

    Attributes:
        unlabelled: images that get a pseudo-label.
        labelled, validation: image files.
        labels: of labelled and validation cases; those of unlabelled ones are not even looked for.
        left_out: unlabelled cases that get none, and why.
    """

    unlabelled: dict[str, list[Path]]
    labelled: dict[str, list[Path]]
    validation: dict[str, list[Path]]
    labels: dict[str, Path]
    left_out: dict[str, str]


def read_sources(
    raw: Path, dataset: Mapping[str, Any], fold: Fold, pattern: str | None = None
) -> Sources:
    """Find the files of a fold's cases.

    Images of patients that have validation or test cases are left out: a training with their
    pseudo-labels would have seen them.

    Args:
        raw: folder of the dataset.
        dataset: content of dataset.json.
        fold: of the model.
        pattern: what in a case name is the patient; guessed if None.

    Raises:
        ValueError: no case is unlabelled.
        FileNotFoundError: a case has no image, or a labelled one no label.
    """
    listed = get_filenames_of_train_images_and_targets(str(raw), dict(dataset))
    training = {
        case: [Path(file) for file in files["images"]]
        for case, files in listed.items()
        if not is_hidden(case)
    }
    folder = raw / UNLABELLED_IMAGES
    images_un = {}
    if folder.is_dir() and any(not is_hidden(file.name) for file in folder.iterdir()):
        images_un = images_by_case(
            folder, dataset["file_ending"], len(next(iter(training.values())))
        )
    images = {**images_un, **training}
    known = {*fold.labelled, *fold.validation}
    wanted = sorted({*fold.unlabelled, *images_un} - known)
    if not wanted:
        raise ValueError(
            f"No case is unlabelled: {folder} is empty, and the split lists none. "
            f"nnUNetv2_plgcl_split writes one that does."
        )
    lost = sorted(case for case in {*wanted, *known} if case not in images)
    if lost:
        raise FileNotFoundError(f"{some(lost)}: no image in {raw}.")
    labels = {case: Path(listed[case]["label"]) for case in sorted(known)}
    without = [case for case, file in labels.items() if not file.is_file()]
    if without:
        raise FileNotFoundError(f"{some(without)}: no label, {labels[without[0]]}.")
    test = {file.name for file in (raw / "imagesTs").glob(f"[!.]*{dataset['file_ending']}")}
    left_out = _same_patients(wanted, fold, test, pattern or guess_group_pattern(sorted(images)))
    return Sources(
        unlabelled={case: images[case] for case in wanted if case not in left_out},
        labelled={case: images[case] for case in fold.labelled},
        validation={case: images[case] for case in fold.validation},
        labels=labels,
        left_out=left_out,
    )


def _same_patients(
    cases: Collection[str], fold: Fold, test_files: Collection[str], pattern: str
) -> dict[str, str]:
    """Cases whose patient must stay unseen, and why."""
    groups = group_matching(cases, pattern)
    held_back = {} if fold.validation == fold.labelled else {"validation": fold.validation}
    reasons = {}
    for part, names in {**held_back, "test": test_files}.items():
        for group in set(groups) & set(group_matching(names, pattern)):
            for case in groups[group]:
                reasons[case] = f"its patient, {group}, has {part} cases"
    return reasons
