"""Everything that is checked before a training, put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_plgcl.datasets.check.classes import check_classes
from nnunetv2_plgcl.datasets.check.finding import PARTS, Finding, Part
from nnunetv2_plgcl.datasets.check.images import check_images
from nnunetv2_plgcl.datasets.check.parts import check_parts
from nnunetv2_plgcl.datasets.files import dataset_number, read_group_pattern, read_split
from nnunetv2_plgcl.datasets.raw import images_by_case, labelled_images
from nnunetv2_plgcl.datasets.strict import require_replanned
from nnunetv2_plgcl.datasets.summary import CACHE, summaries
from nnunetv2_plgcl.datasets.unlabelled import (
    UNLABELLED_IMAGES,
    preprocessed_cases,
    require_current,
    some,
    unlabelled_cases,
    unlabelled_folder,
)


def check_training(
    plans: dict,
    dataset: dict,
    configuration: str,
    fold: int | str,
    group_by: str | None = None,
    processes: int = 2,
) -> list[Finding]:
    """Check one fold of a planned and preprocessed dataset.

    Args:
        plans: content of the plans file.
        dataset: content of dataset.json.
        configuration: of the plans.
        fold: number, or ``"all"``.
        group_by: what in a case name is the patient; if None, what ``nnUNetv2_plgcl_split``
            noted beside the split, else guessed.
        processes: to read images with that were not read before.

    Raises:
        ValueError: a JSON file is damaged; ``group_by`` finds nothing in a case.
    """
    from nnunetv2 import paths
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    base = Path(paths.nnUNet_preprocessed) / manager.dataset_name
    folder = base / resolved.data_identifier
    folder_un = unlabelled_folder(base, resolved.data_identifier)
    raw = Path(paths.nnUNet_raw) / manager.dataset_name if paths.nnUNet_raw.is_set() else None
    images_un = preprocessed_cases(folder_un)
    splits_file = base / "splits_final.json"
    splits = read_split(splits_file)
    group_by = group_by or read_group_pattern(base)

    findings: list[Finding] = []
    unlabelled: list[str] = []
    try:
        if raw is not None:
            ending = dataset["file_ending"]
            require_replanned(raw, base, folder)
            require_current(folder_un, plans, configuration, raw / UNLABELLED_IMAGES, ending)
        unlabelled = unlabelled_cases(
            splits, fold, splits_file, dataset_number(manager.dataset_name), images_un
        )
    except (ValueError, FileNotFoundError) as error:
        findings.append(Finding("error", str(error)))
    if isinstance(fold, int) and fold < len(splits):
        labelled, validation = splits[fold]["train"], splits[fold]["val"]
    else:  # fold all, or a split that nnU-Net is about to make
        everything = nnUNetDatasetBlosc2.get_identifiers(str(folder)) if folder.is_dir() else []
        labelled, validation = sorted(set(everything) - set(unlabelled)), []
    parts: dict[Part, Sequence[str]] = {
        "labelled": labelled,
        "unlabelled": unlabelled,
        "validation": validation,
    }
    in_folder_un = set(images_un)
    places = {c: folder_un if c in in_folder_un else folder for c in [*unlabelled, *validation]}
    missing = [case for case, place in places.items() if not (place / f"{case}.b2nd").is_file()]
    if missing:
        findings.append(
            Finding(
                "error",
                f"{some(missing)}: not preprocessed for configuration {configuration}. Run: "
                f"nnUNetv2_preprocess -d {dataset_number(manager.dataset_name)} -c {configuration} "
                f"-plans_name {manager.plans_name}",
            )
        )
    findings += check_parts(parts, group_by)
    findings += check_classes(labelled, folder, dataset["labels"])
    if raw is None or not (raw / "dataset.json").is_file():
        findings.append(Finding("note", "The raw images are not at hand, so they are not checked."))
    else:
        files = labelled_images(raw, dataset)
        if (raw / UNLABELLED_IMAGES).is_dir():
            per_case = len(next(iter(files.values())))
            files |= images_by_case(raw / UNLABELLED_IMAGES, dataset["file_ending"], per_case)
        wanted = {case: files[case] for part in PARTS for case in parts[part] if case in files}
        lost = [case for part in PARTS for case in parts[part] if case not in files]
        if lost:
            findings.append(
                Finding("warning", f"{some(lost)}: no image in {raw}, so it is not checked.")
            )
        reader = manager.image_reader_writer_class
        images = summaries(wanted, reader, base / CACHE, processes)
        findings += check_images(parts, images, len(dataset["channel_names"]))
    preprocessed = [
        *(folder / f"{case}.b2nd" for case in labelled),
        *(place / f"{case}.b2nd" for case, place in places.items()),
    ]
    on_disk = sum(file.stat().st_size for file in preprocessed if file.is_file())
    counts = ", ".join(f"{len(parts[part])} {part}" for part in PARTS)
    findings.append(Finding("note", f"{counts} cases, {on_disk / 2**30:.2f} GiB preprocessed."))
    return findings
