"""Files of a raw dataset: the images of each case, and what else belongs to it. Source: ours."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.description import read_dataset
from nnunetv2_plgcl.datasets.files import dataset_name, is_text, nnunet_folder

CHANNEL = r"_\d{4}"  # of an image's name, before the file ending


def training_cases(dataset: str) -> tuple[str, list[str]]:
    """Name and case identifiers of a dataset in nnUNet_raw, as nnU-Net itself lists them.

    Args:
        dataset: number or full name, e.g. "27" or "Dataset027_ACDC".

    Raises:
        ValueError: nnUNet_raw is not set; no or no unique such dataset; no case in it.
    """
    from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

    raw, name = nnunet_folder("nnUNet_raw"), dataset_name(dataset)
    description = raw / name / "dataset.json"
    if not description.is_file():
        raise ValueError(f"There is no dataset {dataset} in {raw}: {description} is missing.")
    content = read_dataset(description)
    if "dataset" in content:  # then the files may lie anywhere
        cases = sorted(content["dataset"])
    else:
        images = raw / name / "imagesTr"
        if not images.is_dir():
            raise ValueError(f"There is no folder {images}.")
        found = get_identifiers_from_splitted_dataset_folder(str(images), content["file_ending"])
        cases = [str(case) for case in found if not case.startswith(".")]  # macOS leaves such
    if not cases:
        raise ValueError(f"{name} has no training case.")
    for case in cases:
        require_text(case, raw / name / "imagesTr")
    return name, cases


def require_text(name: str, folder: Path) -> None:
    if not is_text(name):
        raise ValueError(
            f"{folder} holds a file whose name is not in UTF-8, {name!r}: nnU-Net cannot read it. "
            f"Rename it."
        )


def labelled_images(raw: Path, dataset: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Image files of each training case of a raw dataset, as nnU-Net finds them.

    Args:
        raw: folder of the dataset.
        dataset: content of dataset.json.

    Raises:
        ValueError: there is none.
    """
    if "dataset" in dataset:  # then the files may lie anywhere
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        named = get_filenames_of_train_images_and_targets(str(raw), dict(dataset))
        return {case: [Path(file) for file in files["images"]] for case, files in named.items()}
    return images_by_case(raw / "imagesTr", dataset["file_ending"], ignore_others=True)


def images_at_hand(raw: Path, dataset: Mapping[str, Any]) -> dict[str, list[Path]]:
    """``labelled_images`` of those cases whose files are all there: where preprocessed data
    travelled alone, none."""
    try:
        images = labelled_images(raw, dataset)
    except (ValueError, OSError):
        return {}
    return {case: files for case, files in images.items() if all(f.is_file() for f in files)}


def images_by_case(
    folder: Path,
    file_ending: str,
    files_per_case: int | None = None,
    ignore_others: bool = False,
) -> dict[str, list[Path]]:
    """Image files of each case, in the order of their channels.

    Args:
        folder: with files ``CASE_0000.ending``, ``CASE_0001.ending``, ...
        file_ending: as in dataset.json.
        files_per_case: that every case must have; None for those of the first case. (One file may
            hold several channels, as a colour photograph does.)
        ignore_others: pass over files of other endings, as nnU-Net does; else over those that
            are no images of another format.

    Raises:
        ValueError: no folder, no image, a file that is not named so, a link that leads nowhere, a
            case with other channels than the others.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(file_ending))
    found: dict[str, dict[int, Path]] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            continue
        if not ignore_others and entry.is_symlink() and not os.path.exists(entry):
            raise ValueError(f"{entry.path} is a link to what is not there.")
        if not entry.is_file():
            continue
        other = not entry.name.endswith(file_ending)
        if other and (ignore_others or not _is_image(entry.name)):
            continue
        require_text(entry.name, folder)
        match = pattern.fullmatch(entry.name)
        if match is None:
            raise ValueError(
                f"{entry.path} is not named as nnU-Net wants it: CASE_0000{file_ending}, with the "
                f"number of the channel."
            )
        found.setdefault(match[1], {})[int(match[2])] = Path(entry.path)
    if not found:
        raise ValueError(f"{folder} holds no image.")
    number = files_per_case or len(next(iter(found.values())))
    for case, files in found.items():
        if sorted(files) != list(range(number)):
            has, wanted = (
                ", ".join(f"{channel:04d}" for channel in channels)
                for channels in (sorted(files), range(number))
            )
            raise ValueError(
                f"{folder / case} has channel {has}, but the other cases have {wanted}."
            )
    return {case: [files[channel] for channel in range(number)] for case, files in found.items()}


def companions(folder: Path, file_ending: str, cases: Collection[str]) -> dict[str, list[Path]]:
    """Files that belong to a case but are no channel, such as ``CASE.json``, which holds the
    spacing of a 3D TIFF.

    Args:
        folder: of images or labels; it need not exist.
        file_ending: of these, as in dataset.json.
        cases: to look for.

    Returns:
        Sorted files of those cases that have any.
    """
    found: dict[str, list[Path]] = {}
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for name in names:
        if name.endswith(file_ending) or is_hidden(name):
            continue
        case = next((stem for stem in _stems(name) if stem in cases), None)
        if case is not None:
            found.setdefault(case, []).append(folder / name)
    return found


def _stems(name: str) -> Iterator[str]:
    """A name without its endings, one more each time, each also without a channel."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
        yield re.sub(f"{CHANNEL}$", "", name)


def spacing_file(image: Path) -> Path:
    """Where nnU-Net's ``Tiff3DIO`` looks for the spacing of an image; rarely there is one."""
    return image.with_name(re.sub(rf"{CHANNEL}\.\w+(\.gz)?$", "", image.name) + ".json")


def cases_without_label(raw: Path, dataset: Mapping[str, Any], cases: Collection[str]) -> list[str]:
    """Cases of ``imagesTr`` that have no file in ``labelsTr``; none where that has none at all,
    since then the labels are not at hand."""
    if "dataset" in dataset:
        return []
    labels = raw / "labelsTr"
    names = set(os.listdir(labels)) if labels.is_dir() else set()
    without = [case for case in cases if f"{case}{dataset['file_ending']}" not in names]
    return without if len(without) < len(cases) else []


def holds_files(folder: Path) -> bool:
    """Whether there is such a folder with more in it than hidden files."""
    return folder.is_dir() and not all(map(is_hidden, os.listdir(folder)))


def is_hidden(name: str) -> bool:
    """Whether a file is none of the user's: macOS leaves ``._NAME`` beside each file it copies."""
    return name.startswith(".")


def _is_image(name: str) -> bool:
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    endings = {ending for io in LIST_OF_IO_CLASSES for ending in io.supported_file_endings}
    kind = mimetypes.guess_type(name)[0] or ""
    return name.lower().endswith((*endings, ".dcm")) or kind.startswith("image/")
