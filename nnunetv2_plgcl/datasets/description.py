"""What describes a dataset, dataset.json and plans, as nnU-Net reads them.

nnU-Net trusts these files; of one that it would stumble over, the error here names file and key.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_plgcl.datasets.files import dataset_number, is_name, nnunet_folder, read_object
from nnunetv2_plgcl.workers import one_line

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager


def read_dataset(file: Path) -> dict[str, Any]:
    """A dataset.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or nnU-Net cannot read it: no file ending, channels or labels of
            other types than it takes, a case without a list of images.
    """
    dataset = read_object(file, "file_ending", "labels")
    if not isinstance(dataset["file_ending"], str) or not dataset["file_ending"]:
        raise ValueError(f'"file_ending" in {file} is no text such as ".nii.gz".')
    for key in ("modality", "channel_names"):
        names = dataset.get(key, {"0": "image"})  # who needs neither goes on without
        if not isinstance(names, dict) or not names:
            raise ValueError(f'"{key}" in {file} is no object such as {{"0": "MRI"}}.')
    listed = dataset.get("dataset", {})
    if not isinstance(listed, dict) or not all(map(_lists_images, listed.values())):
        raise ValueError(
            f'"dataset" in {file} is no object such as {{"CASE": {{"images": ["FILE"], "label": '
            f'"FILE"}}}}.'
        )
    try:
        label_manager(dataset)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return dataset


def _lists_images(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
        return False
    return all(isinstance(name, str) for name in (*entry["images"], entry.get("label")))


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """Of a dataset.json, under either key that nnU-Net reads (``determine_num_input_channels``).

    Raises:
        ValueError: it has neither.
    """
    for key in ("modality", "channel_names"):
        if key in dataset:
            return list(dataset[key])
    raise ValueError('dataset.json has no "channel_names", such as {"0": "MRI"}.')


def label_manager(dataset: Mapping[str, Any]) -> LabelManager:
    """nnU-Net's own for a dataset.json. Where its regions have no order, that in which they are
    written: it matters for predictions alone.

    Raises:
        ValueError: nnU-Net refuses the labels.
    """
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    order = dataset.get("regions_class_order")
    try:
        labels = dict(dataset["labels"])
        if order is None:
            foreground = [v for n, v in labels.items() if n != "ignore"]
            order = [max(v) for v in map(values_of, foreground) if v != {0}]
        return LabelManager(labels, order)
    except Exception as error:  # nnU-Net converts and asserts what it finds
        hint = ""
        names = dataset["labels"] if isinstance(dataset.get("labels"), dict) else {}
        if names and all(str(name).isdecimal() for name in names):
            hint = ' They are written as for nnU-Net v1: turn {"1": "name"} round, {"name": 1}.'
        raise ValueError(
            f'nnU-Net refuses "labels" in dataset.json: {one_line(error)}.{hint}'
        ) from error


def values_of(label: Any) -> set[int]:
    """Values that a class in ``"labels"`` of dataset.json stands for: one, or those of a region."""
    return {int(value) for value in (label if isinstance(label, (list, tuple)) else [label])}


def read_plans(dataset_name: str, plans_name: str, configuration: str) -> tuple[dict, dict]:
    """Plans and dataset.json of a planned dataset.

    Raises:
        ValueError: nnUNet_preprocessed is not set; the plans do not know the configuration, carry
            the name of the file or dataset that they were copied from, or are none that nnU-Net
            can read.
        FileNotFoundError: the dataset was not planned yet.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name
    file = folder / f"{plans_name}.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{dataset_name} has no plans {file}. Run first: nnUNetv2_plan_and_preprocess "
            f"-d {dataset_number(dataset_name)}"
        )
    plans = read_plans_file(file, configuration)
    if plans["plans_name"] != plans_name:  # nnU-Net names the results' folder after it
        raise ValueError(
            f'"plans_name" in {file} is "{plans["plans_name"]}": a training with these plans '
            f'would be taken for one with those. Set it to "{plans_name}".'
        )
    if plans["dataset_name"] != dataset_name:  # nnU-Net reads the preprocessed cases of that one
        raise ValueError(
            f'"dataset_name" in {file} is "{plans["dataset_name"]}": a training with these plans '
            f'would read the cases of that dataset. Set it to "{dataset_name}".'
        )
    return plans, read_dataset(folder / "dataset.json")


def read_plans_file(file: Path, configuration: str) -> dict[str, Any]:
    """Plans of a dataset, or the copy beside a model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the plans do not know the configuration, or are none that nnU-Net can read.
    """
    plans = read_object(file, "plans_name", "dataset_name", "configurations")
    known = plans["configurations"]
    if not isinstance(known, dict) or not all(isinstance(of, dict) for of in known.values()):
        raise ValueError(f'"configurations" in {file} is no object with an object for each.')
    if configuration not in known:
        raise ValueError(f"{file} has no configuration {configuration}, but {', '.join(known)}.")
    _require_readable(plans, configuration, file)
    return plans


def _require_readable(plans: dict[str, Any], configuration: str, file: Path) -> None:
    """What commands ask of plans, in nnU-Net's own words; what a network is made of, the trainer
    tells when it starts."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        resolved = PlansManager(plans).get_configuration(configuration)
        read = {"image_reader_writer": plans["image_reader_writer"], **resolved.configuration}
        for key, type_ in (
            ("image_reader_writer", str), ("data_identifier", str), ("batch_size", int),
        ):  # fmt: skip
            if not isinstance(read[key], type_):
                raise TypeError(f'"{key}" is {read[key]!r}')
        if not is_name(read["data_identifier"]):  # a folder beside the split
            raise ValueError(f'"data_identifier" is a path, {read["data_identifier"]}')
        if not all(isinstance(size, int) and size > 0 for size in read["patch_size"]):
            raise TypeError(f'"patch_size" is {read["patch_size"]}')
    except Exception as error:  # a key that is not there, another type
        raise ValueError(
            f"nnU-Net cannot read configuration {configuration} of {file}: {one_line(error)}. "
            f"Correct it, or plan again."
        ) from error


def class_names(dataset: Mapping[str, Any]) -> list[str]:
    """Of the classes, in the order of a summary.

    Raises:
        ValueError: nnU-Net refuses the labels.
    """
    labels = label_manager(dataset)
    values = {n: values_of(v) for n, v in labels.label_dict.items() if n != "ignore"}
    foreground = [name for name, of_class in values.items() if of_class != {0}]
    return foreground if labels.has_regions else sorted(foreground, key=lambda n: max(values[n]))
