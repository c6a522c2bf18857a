"""Preprocess images that have no label, with the dataset's own plans and nnU-Net's preprocessor.

They lie in ``imagesUn`` of the raw dataset, named as those in ``imagesTr``. The results go to a
folder of their own beside the labelled ones: nnU-Net takes every case of that folder for labelled,
and deletes it when it preprocesses again. Source: ours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_plgcl.datasets.description import channel_names, read_plans
from nnunetv2_plgcl.datasets.files import nnunet_folder
from nnunetv2_plgcl.datasets.integrity import require_whole
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.preprocessed import read_header
from nnunetv2_plgcl.datasets.raw import companions, images_at_hand, images_by_case
from nnunetv2_plgcl.datasets.strict import require_replanned
from nnunetv2_plgcl.datasets.unlabelled import (
    UNLABELLED_IMAGES,
    preprocessed_cases,
    preprocessing_of,
    read_preprocessing,
    unlabelled_folder,
    write_preprocessing,
)
from nnunetv2_plgcl.workers import mend_and_run_again, naming, run_all

INCOMPLETE = ".incomplete"  # folder for cases in the making
# Blosc2 compresses an image by its content: one far emptier than the labelled ones may need less,
# hardly ever more than this times as much for each raw byte.
DISK_MARGIN = 1.5
BYTES_WITHOUT_MEASURE = 4.0  # per raw byte, where no labelled case is preprocessed


@dataclass(frozen=True)
class Job:
    """What a worker process needs beside the case."""

    plans: dict
    configuration: str
    dataset: dict
    folder: Path


def preprocess_unlabelled(
    dataset_name: str,
    configuration: str,
    plans_name: str = "nnUNetPlans",
    processes: int = 4,
    show_progress: bool = True,
) -> tuple[int, int]:
    """Preprocess every image of ``imagesUn`` that is not preprocessed yet.

    Each case is written under another name and then renamed, so that after a kill no half-written
    case is taken for whole; calling again goes on. A case is done anew where its image is newer,
    all are where the plans have changed.

    Args:
        dataset_name: full name, e.g. "Dataset027_ACDC".
        configuration: of the plans.
        plans_name: of the plans file.
        processes: worker processes; each holds one image in memory.
        show_progress: a bar on stderr.

    Returns:
        Number of cases that were preprocessed now, and that were there already.

    Raises:
        ValueError: no unlabelled image; one of them without all its channels, or of a name that
            a case in ``imagesTr`` has too; no such configuration; plans
            from before ``--strict`` hid labels.
        FileNotFoundError: the dataset was not planned yet.
        OSError: not enough space on the disk.
        RuntimeError: images that could not be preprocessed, with their names; the others are
            done. Or a worker process that was killed.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw = nnunet_folder("nnUNet_raw") / dataset_name
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset_name
    plans, dataset = read_plans(dataset_name, plans_name, configuration)
    resolved = PlansManager(plans).get_configuration(configuration)
    folder_labelled = preprocessed / resolved.data_identifier
    require_replanned(raw, preprocessed, folder_labelled)
    if not (raw / UNLABELLED_IMAGES).is_dir():
        raise ValueError(
            f"There is no folder {raw / UNLABELLED_IMAGES}, where images without a label belong. "
            f"What a split lists as unlabelled is preprocessed by nnUNetv2_preprocess."
        )
    labelled = images_at_hand(raw, dataset)  # they may be on another machine
    files_per_case = len(next(iter(labelled.values()))) if labelled else None
    images = images_by_case(raw / UNLABELLED_IMAGES, dataset["file_ending"], files_per_case)
    both = sorted((set(labelled) or set(preprocessed_cases(folder_labelled))) & set(images))
    if both:
        raise ValueError(
            f"{some(both)}: in imagesTr and in {UNLABELLED_IMAGES}. A case is labelled or "
            f"unlabelled: remove or rename one."
        )

    folder = unlabelled_folder(preprocessed, resolved.data_identifier)
    shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
    now = preprocessing_of(plans, configuration)
    if folder.is_dir() and read_preprocessing(folder) != now:
        shutil.rmtree(folder)  # made by other plans
    (folder / INCOMPLETE).mkdir(parents=True)
    write_preprocessing(folder, now)
    beside = companions(raw / UNLABELLED_IMAGES, dataset["file_ending"], images)
    waiting = {
        case: files
        for case, files in images.items()
        if not _is_done(folder, case, [*files, *beside.get(case, [])])
    }
    try:
        _check_disk_space(waiting, labelled, folder, folder_labelled)
        job = Job(plans, configuration, dataset, folder)
        arguments = {case: (job, case, files) for case, files in waiting.items()}
        failures = run_all(
            preprocess_case, arguments, processes, "Preprocessing unlabelled", show_progress
        )
    finally:
        shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
    for stale in set(preprocessed_cases(folder)) - set(images):
        _remove(folder, stale)
    if failures:
        raise RuntimeError(mend_and_run_again(failures, len(waiting)))
    return len(waiting), len(images) - len(waiting)


def preprocess_case(job: Job, case: str, files: Sequence[Path]) -> None:
    """Preprocess one image without a label and give it its name when it is whole.

    The segmentation that nnU-Net makes up for it is not kept.

    Raises:
        ValueError: a file is damaged.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    for file in files:
        require_whole(file)
    plans = PlansManager(job.plans)
    configuration = plans.get_configuration(job.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    made = job.folder / INCOMPLETE / case
    _require_channels(preprocessor, len(channel_names(job.dataset)))
    with naming(files[0]):
        preprocessor.run_case_save(
            str(made), [str(file) for file in files], None, plans, configuration, job.dataset
        )
    # the image last: it makes the case a whole one
    for ending in (".pkl", ".b2nd"):
        os.replace(f"{made}{ending}", job.folder / f"{case}{ending}")
    Path(f"{made}_seg.b2nd").unlink()


def _require_channels(preprocessor: Any, number: int) -> None:
    """Let a preprocessor refuse images with other channels as soon as it has read them: with fewer
    nnU-Net goes on, with more it fails somewhere else."""
    run_case_npy = preprocessor.run_case_npy

    def checked(data: np.ndarray, *arguments: Any) -> Any:
        if len(data) != number:
            raise ValueError(f"{len(data)} channels, but dataset.json has {number}.")
        return run_case_npy(data, *arguments)

    preprocessor.run_case_npy = checked


def _is_done(folder: Path, case: str, files: Sequence[Path]) -> bool:
    # ctime, too: an image may be replaced by one with an older date
    made = folder / f"{case}.b2nd"
    changed = (max(status.st_mtime, status.st_ctime) for status in map(Path.stat, files))
    return (
        made.is_file() and made.stat().st_mtime >= max(changed) and "error" not in read_header(made)
    )


def _remove(folder: Path, case: str) -> None:
    for ending in (".b2nd", ".pkl"):
        (folder / f"{case}{ending}").unlink(missing_ok=True)


def _check_disk_space(
    waiting: Mapping[str, Sequence[Path]],
    labelled: Mapping[str, Sequence[Path]],
    folder: Path,
    folder_labelled: Path,
) -> None:
    """
    Raises:
        OSError: the results are likely to be larger than the free space. Their size is estimated
            from what the labelled cases take, for each byte of their raw images.
    """
    raw_bytes = sum(file.stat().st_size for files in waiting.values() for file in files)
    needed = DISK_MARGIN * raw_bytes * _bytes_per_raw_byte(labelled, folder_labelled)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{len(waiting)} cases need about {needed / 2**30:.1f} GiB in {folder}, but "
            f"{free / 2**30:.1f} GiB are free."
        )


def _bytes_per_raw_byte(
    labelled: Mapping[str, Sequence[Path]], folder: Path, samples: int = 20
) -> float:
    made = {case: folder / f"{case}.b2nd" for case in labelled}
    done = [case for case, file in made.items() if file.is_file()][:samples]
    if not done:
        return BYTES_WITHOUT_MEASURE
    raw_bytes = sum(file.stat().st_size for case in done for file in labelled[case])
    return sum(made[case].stat().st_size for case in done) / raw_bytes
