"""Everything that is checked before a training, put together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import filterfalse
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_plgcl.datasets.cache import cache_folder
from nnunetv2_plgcl.datasets.check.finding import PARTS, Finding, Part
from nnunetv2_plgcl.datasets.check.images import (
    check_at_hand,
    check_images,
    check_spacing_files,
)
from nnunetv2_plgcl.datasets.check.labels import check_classes, check_labels
from nnunetv2_plgcl.datasets.check.parts import check_parts
from nnunetv2_plgcl.datasets.check.preprocessed import check_preprocessed, properties_of
from nnunetv2_plgcl.datasets.description import channel_names
from nnunetv2_plgcl.datasets.files import PARTS as KEYS_OF_A_FOLD
from nnunetv2_plgcl.datasets.files import (
    dataset_number,
    read_group_pattern,
    read_split,
)
from nnunetv2_plgcl.datasets.labels import CACHE as LABELS_CACHE
from nnunetv2_plgcl.datasets.labels import label_files, label_values
from nnunetv2_plgcl.datasets.raw import holds_files, images_by_case, is_hidden, labelled_images
from nnunetv2_plgcl.datasets.strict import require_replanned
from nnunetv2_plgcl.datasets.summary import CACHE as IMAGES_CACHE
from nnunetv2_plgcl.datasets.summary import summaries
from nnunetv2_plgcl.datasets.unlabelled import (
    UNLABELLED_IMAGES,
    preprocessed_cases,
    require_current,
    require_one_place,
    unlabelled_cases,
    unlabelled_folder,
)
from nnunetv2_plgcl.workers import one_line


def check_training(
    plans: dict,
    dataset: dict,
    configuration: str,
    fold: int | str,
    group_by: str | None = None,
    processes: int = 2,
    all_values: bool = False,
) -> list[Finding]:
    """Check one fold of a planned and preprocessed dataset.

    Args:
        plans: content of the plans file.
        dataset: content of dataset.json.
        configuration: of the plans.
        fold: number, or ``"all"``.
        group_by: what in a case name is the patient; if None, what ``nnUNetv2_plgcl_split``
            noted beside the split, else guessed.
        processes: to read what was not read before with.
        all_values: read all values of preprocessed images, not only their headers.

    Raises:
        ValueError: a JSON file is damaged; ``group_by`` finds nothing in a case.
    """
    from nnunetv2 import paths
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    number = dataset_number(manager.dataset_name)
    base = Path(paths.nnUNet_preprocessed) / manager.dataset_name
    cache = cache_folder(base)
    folder = base / resolved.data_identifier
    folder_un = unlabelled_folder(base, resolved.data_identifier)
    raw = Path(paths.nnUNet_raw) / manager.dataset_name if paths.nnUNet_raw.is_set() else None
    images_un = preprocessed_cases(folder_un)
    splits_file = base / "splits_final.json"
    splits = read_split(splits_file, fold)

    findings: list[Finding] = []
    unlabelled: list[str] = []
    try:
        if raw is not None:
            ending = dataset["file_ending"]
            require_replanned(raw, base, folder)
            require_current(folder_un, plans, configuration, raw / UNLABELLED_IMAGES, ending)
        require_one_place(images_un, folder)
        unlabelled = unlabelled_cases(splits, fold, splits_file, number, images_un)
    except (ValueError, FileNotFoundError) as error:
        findings.append(Finding("error", str(error)))
    if isinstance(fold, int) and fold < len(splits):
        labelled, validation = splits[fold]["train"], splits[fold]["val"]
        others = sorted(set(splits[fold]) - set(KEYS_OF_A_FOLD))
        if others:
            text = f"Fold {fold} of {splits_file} has {', '.join(others)}, which nothing reads."
            findings.append(Finding("warning", text))
    else:  # fold all, or a split that nnU-Net is about to make
        there = nnUNetDatasetBlosc2.get_identifiers(str(folder)) if folder.is_dir() else []
        labelled = sorted(set(filterfalse(is_hidden, there)) - set(unlabelled))
        hidden = sorted(filter(is_hidden, there))
        if hidden:
            text = f"{folder} holds {hidden[0]}.b2nd, which nnU-Net takes for a case: remove it."
            findings.append(Finding("error", text))
        validation = []
    parts: dict[Part, Sequence[str]] = {
        "labelled": labelled,
        "unlabelled": unlabelled,
        "validation": validation,
    }
    in_folder_un = set(images_un) & set(unlabelled)
    mend = (
        f"Run: nnUNetv2_preprocess -d {number} -c {configuration} -plans_name {manager.plans_name}"
    )
    images = {
        case: (folder_un if case in in_folder_un else folder) / f"{case}.b2nd"
        for part in PARTS
        for case in parts[part]
    }
    with_label = [*labelled, *validation]
    there = [case for case in with_label if images[case].is_file()]
    findings += check_preprocessed(
        images,
        {case: folder / f"{case}_seg.b2nd" for case in there},
        len(channel_names(dataset)),
        configuration,
        mend + (f"; for {UNLABELLED_IMAGES}, nnUNetv2_plgcl_preprocess" if in_folder_un else ""),
        cache,
        processes if all_values else None,
    )
    findings += check_parts(parts, group_by, read_group_pattern(base))
    properties = properties_of({case: folder / f"{case}.pkl" for case in there}, cache)
    findings += check_classes(labelled, properties, dataset["labels"], mend)
    reader = manager.image_reader_writer_class
    labels = label_files(raw, base, dataset, with_label)
    findings += check_labels(label_values(labels, reader, cache / LABELS_CACHE, processes), dataset)
    files, unclear = _raw_images(raw, dataset, in_folder_un)
    wanted = {case: files[case] for case in images if case in files}
    findings += [*unclear, *check_at_hand(images, wanted, in_folder_un, raw)]
    seen = summaries(wanted, reader, cache / IMAGES_CACHE, processes)
    findings += check_images(parts, seen, len(channel_names(dataset)))
    findings += check_spacing_files(parts, wanted)
    on_disk = sum(file.stat().st_size for file in images.values() if file.is_file())
    counts = ", ".join(f"{len(parts[part])} {part}" for part in PARTS)
    findings.append(Finding("note", f"{counts} cases, {on_disk / 2**30:.2f} GiB preprocessed."))
    return findings


def _raw_images(
    raw: Path | None, dataset: Mapping[str, Any], images_un: Collection[str]
) -> tuple[dict[str, list[Path]], list[Finding]]:
    """Raw image files of those cases whose files are all at hand, and what hinders to find others:
    a training does not need them, and on another machine there may be none.

    Args:
        raw: folder of the dataset, None where there is none.
        dataset: content of dataset.json.
        images_un: cases of ``imagesUn``.
    """
    files: dict[str, list[Path]] = {}
    findings = []
    for name, find in (
        ("imagesTr", lambda folder: labelled_images(folder.parent, dataset)),
        (UNLABELLED_IMAGES, lambda folder: images_by_case(folder, dataset["file_ending"])),
    ):
        if raw is None or (name == UNLABELLED_IMAGES and not images_un):
            continue
        try:
            if ("dataset" in dataset and name == "imagesTr") or holds_files(raw / name):
                files |= find(raw / name)
        except (ValueError, OSError) as error:
            findings.append(
                Finding("warning", f"{one_line(error)} So the images there are not checked.")
            )
    whole = {case: of for case, of in files.items() if all(file.is_file() for file in of)}
    return whole, findings
