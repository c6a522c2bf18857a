"""Leaks by content, and images that are damaged or unlike the labelled ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from nnunetv2_plgcl.datasets.check.finding import PARTS, Finding, Part, numbers
from nnunetv2_plgcl.datasets.names import first, some
from nnunetv2_plgcl.datasets.raw import spacing_file
from nnunetv2_plgcl.datasets.summary import ImageSummary
from nnunetv2_plgcl.datasets.unlabelled import UNLABELLED_IMAGES

# An unlabelled image is far from the labelled ones beyond ...
SPACING_FACTOR = 2.0  # times their largest, or below their smallest by this factor
INTENSITY_RANGES = 5.0  # times the range of their mean intensities, added at both ends


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
    yield from _impossible_spacing(readable, images)
    yield from _copies(parts, readable, images)
    labelled = [case for case in known["labelled"] if not images[case].error]
    others = [case for case in known["unlabelled"] if not images[case].error]
    if labelled:
        yield from _spacing(labelled, others, images)
        yield from _orientation(labelled, others, images)
        yield from _intensity(labelled, others, images)


def check_at_hand(
    images: Mapping[str, Path],
    raw_images: Mapping[str, Sequence[Path]],
    images_un: Collection[str],
    raw: Path | None,
) -> Iterator[Finding]:
    """Raw images that are gone, or were replaced after they had been preprocessed.

    Args:
        images: preprocessed image of each case.
        raw_images: files of every case that is at hand.
        images_un: cases of ``imagesUn``.
        raw: folder of the dataset.
    """
    if not raw_images:
        yield Finding("note", "The raw images are not at hand, so they are not checked.")
        return
    gone = [case for case in images if case not in raw_images]
    removed = [case for case in gone if case in images_un]
    others = [case for case in gone if case not in images_un]
    if others:
        yield Finding("warning", f"{some(others)}: no image in {raw}, so it is not checked.")
    if removed:
        yield Finding(
            "warning",
            f"{some(removed)}: preprocessed, but no longer in {UNLABELLED_IMAGES}. A training uses "
            f"them all the same, until nnUNetv2_plgcl_preprocess removes them.",
        )
    newer = [
        case
        for case, files in raw_images.items()
        if images[case].is_file()
        and max(file.stat().st_mtime for file in files) > images[case].stat().st_mtime
    ]
    if 0 < len(newer) < len(raw_images):  # where all are, the raw dataset was copied here
        yield Finding(
            "warning",
            f"{some(newer)}: the image is newer than what was preprocessed of it. If it was "
            f"replaced, preprocess again.",
        )


def check_spacing_files(
    parts: Mapping[Part, Sequence[str]], files: Mapping[str, Sequence[Path]]
) -> Iterator[Finding]:
    """Images without the file that holds the spacing of others (nnU-Net's for 3D TIFF).

    Args:
        parts: cases of each part.
        files: image files of every case that is at hand.
    """
    known = [case for part in PARTS for case in parts[part] if case in files]
    without = [case for case in known if not spacing_file(files[case][0]).is_file()]
    if without and len(without) < len(known):
        yield Finding(
            "warning",
            f"{some(without)}: no file {spacing_file(files[without[0]][0])} with the spacing, as "
            f"other images have. nnU-Net then takes 1 x 1 x 1 mm.",
        )


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
    # a slice outside the body may be black, a volume may not
    slices = [case for case in constant if images[case].shape[0] == 1]
    volumes = [case for case in constant if images[case].shape[0] != 1]
    for level, useless in (("warning", slices), ("error", volumes)):
        if useless:
            yield Finding(
                level,  # type: ignore[arg-type]
                f"{some(useless)}: the same value everywhere. Remove the images, they teach "
                f"nothing.",
            )


def _impossible_spacing(
    cases: Sequence[str], images: Mapping[str, ImageSummary]
) -> Iterator[Finding]:
    wrong = [case for case in cases if not all(0 < s < math.inf for s in images[case].spacing)]
    if wrong:
        yield Finding(
            "error",
            f"{some(wrong)}: voxel spacing {numbers(images[wrong[0]].spacing)} mm. Correct the "
            f"header, or the file that holds the spacing, and preprocess again.",
        )


def _copies(
    parts: Mapping[Part, Sequence[str]], cases: Sequence[str], images: Mapping[str, ImageSummary]
) -> Iterator[Finding]:
    part_of = {case: part for part in PARTS for case in parts[part]}
    by_digest = defaultdict(list)
    for case in dict.fromkeys(cases):
        if images[case].minimum == images[case].maximum:
            continue  # black slices are equal, but no copies
        by_digest[images[case].digest].append(case)
    copies = [same for same in by_digest.values() if len(same) > 1]
    leaks = [same for same in copies if len({part_of[case] for case in same}) > 1]
    wasteful = [same for same in copies if same not in leaks]
    if leaks:
        named = [" = ".join(f"{case} ({part_of[case]})" for case in same) for same in leaks]
        yield Finding(
            "error", f"The same image under two names: {first(named)}. Remove the copies."
        )
    if wasteful:
        named = [" = ".join(same) for same in wasteful]
        yield Finding(
            "warning", f"The same image twice in one part: {first(named)}. Remove the copies."
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
            f"{some(far)}: voxel spacing {numbers(images[far[0]].spacing)} mm, the labelled have "
            f"{numbers(low)} to {numbers(high)} mm. Is the header right?",
        )


def _orientation(
    labelled: Sequence[str], others: Sequence[str], images: Mapping[str, ImageSummary]
) -> Iterator[Finding]:
    usual = {images[case].orientation for case in labelled}
    turned = [case for case in others if images[case].orientation not in {None, *usual}]
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
