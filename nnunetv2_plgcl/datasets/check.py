"""Everything that would make a training wrong or wasteful, found before it starts. Source: ours."""

from __future__ import annotations

import pickle
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.datasets.files import read_group_pattern, read_split
from nnunetv2_plgcl.datasets.split import (
    EVERY_CASE_ITSELF,
    group_cases,
    group_matching,
    guess_group_pattern,
)
from nnunetv2_plgcl.datasets.strict import require_replanned
from nnunetv2_plgcl.datasets.summary import CACHE, ImageSummary, summaries
from nnunetv2_plgcl.datasets.unlabelled import (
    UNLABELLED_IMAGES,
    images_by_case,
    labelled_images,
    preprocessed_cases,
    require_current,
    some,
    unlabelled_cases,
    unlabelled_folder,
)
from nnunetv2_plgcl.settings import config_from_plans

Part = Literal["labelled", "unlabelled", "validation"]
PARTS: tuple[Part, ...] = ("labelled", "unlabelled", "validation")

# An unlabelled image is far from the labelled ones beyond ...
SPACING_FACTOR = 2.0  # times their largest, or below their smallest by this factor
INTENSITY_RANGES = 5.0  # times the range of their mean intensities, added at both ends


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: "error" where the training would be wrong, "warning" where it may be, "note" else.
        text: one line that names the cases and says what to do.
        certain: false where it rests on a guess, so that a training may start all the same.
    """

    level: Literal["error", "warning", "note"]
    text: str
    certain: bool = True


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
            splits, fold, splits_file, manager.dataset_name[7:10], images_un
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
                f"nnUNetv2_preprocess -d {int(manager.dataset_name[7:10])} -c {configuration} "
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


def estimate_memory(plans: dict, dataset: dict, configuration: str) -> Finding:
    """What our trainers add to the GPU memory that nnU-Net planned, and the size on disk; a
    warning where the disk has less left."""
    from nnunetv2 import paths
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    classes = manager.get_label_manager(dataset).num_segmentation_heads
    network = get_network_from_plans(
        resolved.network_arch_class_name,
        resolved.network_arch_init_kwargs,
        resolved.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, resolved, dataset),
        classes,
    )
    weights = sum(
        parameter.numel() * parameter.element_size() for parameter in network.parameters()
    )
    config = config_from_plans(resolved.configuration)
    buffers = ClassMemory(classes, config.memory_length).buffers()
    memory = 2 * sum(b.numel() * b.element_size() for b in buffers)  # positives and negatives
    # student (twice: also as deployed weights), teacher, momentum; final, best and latest
    checkpoints = 3 * (4 * weights + memory)
    text = (
        f"GPU memory as nnU-Net planned it, plus about {(weights + memory) / 2**20:.0f} MiB for "
        f"the teacher's weights and the memory of embeddings. Checkpoints up to "
        f"{checkpoints / 2**20:.0f} MiB."
    )
    if paths.nnUNet_results.is_set() and Path(paths.nnUNet_results).is_dir():
        free = shutil.disk_usage(paths.nnUNet_results).free
        if free < checkpoints:
            return Finding("warning", f"{text} Only {free / 2**20:.0f} MiB are free there.")
    return Finding("note", text)


def check_parts(
    parts: Mapping[Part, Sequence[str]], group_by: str | None = None
) -> Iterator[Finding]:
    """Leaks by name and by patient between the parts of a fold.

    Args:
        parts: cases of each part.
        group_by: what in a case name is the patient; guessed if None.

    Raises:
        ValueError: the pattern finds nothing in a labelled or validation case.
    """
    for one, other in combinations(PARTS, 2):
        both = sorted(set(parts[one]) & set(parts[other]))
        if both:
            yield Finding("error", f"{some(both)}: both {one} and {other}. Write another split.")
    cases = {case for part in PARTS for case in parts[part]}
    pattern = group_by or guess_group_pattern(sorted(cases))
    group_cases({*parts["labelled"], *parts["validation"]}, pattern)
    groups = group_matching(cases, pattern)
    if pattern == EVERY_CASE_ITSELF:
        yield Finding(
            "note",
            "No patient was recognised in the names, so each case counts as one (--group-by).",
        )
    part_of = {case: part for part in PARTS for case in parts[part]}
    for level, others in (("error", ("labelled", "unlabelled")), ("warning", ("labelled",))):
        against = "validation" if level == "error" else "unlabelled"
        split = [
            group
            for group, members in groups.items()
            if against in (sides := {part_of[m] for m in members}) and sides & set(others)
        ]
        if split:
            said = " or ".join(others)
            yield Finding(
                level,  # type: ignore[arg-type]
                f"Patient {_first(split)}: some images are {against}, others "
                f"{said}. Keep a patient on one side: nnUNetv2_plgcl_split, or correct what is "
                f"taken for the patient, '{pattern}', with --group-by.",
                certain=group_by is not None,
            )


def check_images(
    parts: Mapping[Part, Sequence[str]], images: Mapping[str, ImageSummary], channels: int
) -> Iterator[Finding]:
    """Leaks by content, and images that do not fit the labelled ones.

    Args:
        parts: cases of each part.
        images: summary of every case that could be looked at.
        channels: that the network takes.
    """
    known = {part: [case for case in parts[part] if case in images] for part in PARTS}
    everything = [case for part in PARTS for case in known[part]]
    for case in everything:
        if images[case].error:
            yield Finding("error", f"Case {case} cannot be read. {images[case].error}")
    readable = [case for case in everything if not images[case].error]
    yield from _channels(readable, images, channels)
    yield from _values(readable, images)
    yield from _copies(parts, readable, images)
    labelled = [case for case in known["labelled"] if not images[case].error]
    others = [case for case in known["unlabelled"] if not images[case].error]
    if labelled:
        yield from _spacing(labelled, others, images)
        yield from _orientation(labelled, others, images)
        yield from _intensity(labelled, others, images)


def _channels(
    cases: Sequence[str], images: Mapping[str, ImageSummary], channels: int
) -> Iterator[Finding]:
    wrong = [case for case in cases if len(images[case].mean) != channels]
    if wrong:
        yield Finding(
            "error",
            f"{some(wrong)}: {len(images[wrong[0]].mean)} channels, but dataset.json has "
            f"{channels}. Every image needs the same ones.",
        )


def _values(cases: Sequence[str], images: Mapping[str, ImageSummary]) -> Iterator[Finding]:
    not_finite = [case for case in cases if not images[case].finite]
    if not_finite:
        yield Finding(
            "error", f"{some(not_finite)}: NaN or infinite values. Mend or remove the images."
        )
    flat = {
        case: [a == b for a, b in zip(images[case].minimum, images[case].maximum, strict=True)]
        for case in cases
    }
    constant = [case for case in cases if all(flat[case])]
    partly = [case for case in cases if any(flat[case]) and not all(flat[case])]
    if partly:
        yield Finding(
            "warning",
            f"{some(partly)}: channel {flat[partly[0]].index(True)} has the same value everywhere. "
            f"Is a channel missing?",
        )
    if constant:
        yield Finding(
            "error",
            f"{some(constant)}: the same value everywhere. Remove the images, they teach nothing.",
        )


def _copies(
    parts: Mapping[Part, Sequence[str]], cases: Sequence[str], images: Mapping[str, ImageSummary]
) -> Iterator[Finding]:
    part_of = {case: part for part in PARTS for case in parts[part]}
    by_digest = defaultdict(list)
    for case in dict.fromkeys(cases):
        by_digest[images[case].digest].append(case)
    copies = [same for same in by_digest.values() if len(same) > 1]
    leaks = [same for same in copies if len({part_of[case] for case in same}) > 1]
    wasteful = [same for same in copies if same not in leaks]
    if leaks:
        named = [" = ".join(f"{case} ({part_of[case]})" for case in same) for same in leaks]
        yield Finding(
            "error", f"The same image under two names: {_first(named)}. Remove the copies."
        )
    if wasteful:
        named = [" = ".join(same) for same in wasteful]
        yield Finding(
            "warning", f"The same image twice in one part: {_first(named)}. Remove the copies."
        )


def _spacing(
    labelled: Sequence[str], others: Sequence[str], images: Mapping[str, ImageSummary]
) -> Iterator[Finding]:
    axes = range(len(images[labelled[0]].spacing))
    low = [min(images[case].spacing[axis] for case in labelled) for axis in axes]
    high = [max(images[case].spacing[axis] for case in labelled) for axis in axes]
    far = [
        case
        for case in others
        if any(
            not low[axis] / SPACING_FACTOR
            <= images[case].spacing[axis]
            <= high[axis] * SPACING_FACTOR
            for axis in axes
        )
    ]
    if far:
        yield Finding(
            "warning",
            f"{some(far)}: voxel spacing {_numbers(images[far[0]].spacing)} mm, the labelled have "
            f"{_numbers(low)} to {_numbers(high)} mm. Is the header right?",
        )


def _orientation(
    labelled: Sequence[str], others: Sequence[str], images: Mapping[str, ImageSummary]
) -> Iterator[Finding]:
    usual = {images[case].orientation for case in labelled}
    turned = [case for case in others if images[case].orientation not in usual]
    if turned:
        yield Finding(
            "warning",
            f"{some(turned)}: axes point to {images[turned[0]].orientation}, those of the labelled "
            f"to {', '.join(sorted(map(str, usual)))}. nnU-Net does not turn images: turn them so.",
        )


def _intensity(
    labelled: Sequence[str], others: Sequence[str], images: Mapping[str, ImageSummary]
) -> Iterator[Finding]:
    for channel in range(len(images[labelled[0]].mean)):
        means = [
            images[case].mean[channel] for case in labelled if len(images[case].mean) > channel
        ]
        spread = max(max(means) - min(means), abs(sum(means) / len(means)) / 2)
        low, high = min(means) - INTENSITY_RANGES * spread, max(means) + INTENSITY_RANGES * spread
        far = [
            case
            for case in others
            if len(images[case].mean) > channel and not low <= images[case].mean[channel] <= high
        ]
        if far:
            yield Finding(
                "warning",
                f"{some(far)}: mean intensity {images[far[0]].mean[channel]:.4g} in channel "
                f"{channel}, the labelled have {min(means):.4g} to {max(means):.4g}. Another "
                f"sequence or unit?",
            )


def check_classes(
    labelled: Iterable[str], folder: Path, classes: Mapping[str, int | Sequence[int]]
) -> Iterator[Finding]:
    """Classes that no labelled case has.

    Args:
        labelled: cases of the fold's ``"train"``.
        folder: where nnU-Net preprocessed them; it noted there which classes each has.
        classes: ``"labels"`` of dataset.json.
    """
    seen: set[int] = set()
    for case in labelled:
        file = folder / f"{case}.pkl"
        if not file.is_file():
            yield Finding("error", f"Case {case} is labelled but not preprocessed in {folder}.")
            return
        with open(file, "rb") as stream:
            locations = pickle.load(stream)["class_locations"]
        for key, voxels in locations.items():
            if len(voxels) and not (isinstance(key, tuple) and -1 in key):
                seen.update(key if isinstance(key, tuple) else (key,))
    for name, value in classes.items():
        values = set(value) if isinstance(value, (list, tuple)) else {value}
        if name != "ignore" and 0 not in values and not values & seen:
            yield Finding(
                "warning",
                f"No labelled case has {name} ({value}), so it cannot be learned. Label a case "
                f"that has it, or write another split.",
            )


def _first(items: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
