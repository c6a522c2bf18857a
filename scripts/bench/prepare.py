"""Plans, splits and preprocessed data of a benchmark. Done once: what is there is kept."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from bench.datasets import BenchDataset
from nnunetv2_plgcl.datasets.files import (
    nnunet_folder,
    read_json,
    write_group_pattern,
    write_json,
    write_split,
)
from nnunetv2_plgcl.datasets.groups import group_cases
from nnunetv2_plgcl.datasets.split import make_split

PLANS = "nnUNetPlans"
ALL = "all"  # every training patient is labelled: the upper bound
DEVELOPMENT_SHARE = 3 / 7  # of the training patients, to look at; 30 of ACDC's 70


@dataclass(frozen=True)
class Fold:
    """One fold of splits_final.json.

    Attributes:
        split: "val", with the validation cases of split.json, or "dev", a development split
            inside its training patients.
        labelled: number of labelled patients, or ``ALL``.
        cases: "train" (labelled), "val" and maybe "unlabelled".
    """

    split: str
    labelled: str
    cases: dict[str, list[str]]


def make_folds(split: dict, patient: str, copies: Collection[str] = ()) -> list[Fold]:
    """All folds of a dataset: validation and development, for each number of labelled patients.

    Patients of the development split are drawn by ``make_split`` with seed 0. They are labelled
    independently of the table's, so that settings are not fitted to its labelled patients.

    Args:
        split: content of split.json: cases of "train" and "val", and of "labelled" by number.
        patient: regular expression.
        copies: patients left out of the development split, where their images would be on two
            sides.
    """
    train, val = sorted(split["train"]), sorted(split["val"])
    numbers = sorted(split["labelled"], key=int)
    folds = []
    for number in numbers:
        labelled = sorted(split["labelled"][number])
        unlabelled = sorted(set(train) - set(labelled))
        folds.append(Fold("val", number, {"train": labelled, "val": val, "unlabelled": unlabelled}))
    folds.append(Fold("val", ALL, {"train": train, "val": val}))
    own = {name: of for name, of in group_cases(train, patient).items() if name not in copies}
    cases_of_own = [case for of_patient in own.values() for case in of_patient]
    to_look_at = round(DEVELOPMENT_SHARE * len(own))
    for number in numbers:
        (cases,) = make_split(cases_of_own, int(number), to_look_at, group_by=patient)
        folds.append(Fold("dev", number, cases))
    everything = sorted(cases["train"] + cases["unlabelled"])
    folds.append(Fold("dev", ALL, {"train": everything, "val": cases["val"]}))
    return folds


def require_raw(data: Path) -> dict:
    """What the folder's split.json holds.

    Raises:
        ValueError: it is not in nnU-Net's raw layout with a split.json.
    """
    for name in ("imagesTr", "labelsTr", "dataset.json", "split.json"):
        if not (data / name).exists():
            raise ValueError(
                f"{data} is not in nnU-Net's raw layout with a split.json: it has no {name}."
            )
    split = read_json(data / "split.json")
    lacking = [key for key in ("train", "val", "labelled") if key not in split]
    if lacking:
        raise ValueError(f'{data / "split.json"} has no "{lacking[0]}".')
    return dict(split)


def prepare(
    data: Path, dataset: BenchDataset, configuration: str, folds: list[Fold], processes: int
) -> None:
    """Plan and preprocess, in the folders that nnU-Net's variables name.

    Raises:
        ValueError: these hold another dataset from an earlier call, or the configuration is
            neither nnU-Net's nor one of the dataset's.
        FileExistsError: the split was another one.
    """
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset.folder
    raw = nnunet_folder("nnUNet_raw") / dataset.folder
    if not raw.is_symlink():
        raw.symlink_to(data.resolve(), target_is_directory=True)
    elif raw.resolve() != data.resolve():
        raise ValueError(
            f"{raw} was made from {raw.resolve()}, not from {data}. Name another --work."
        )
    plans_file = preprocessed / f"{PLANS}.json"
    if not plans_file.is_file():
        nnunet.extract_fingerprints([dataset.number], num_processes=processes)
        nnunet.plan_experiments([dataset.number])
    configurations = (plans := read_json(plans_file))["configurations"]
    if not dataset.cpu.keys() <= configurations.keys():
        base = configurations[dataset.base]
        for name, small in dataset.cpu.items():
            configurations[name] = small.made_from(name, dataset.base, base)
        write_json(plans_file, plans)
    if configuration not in configurations:
        raise ValueError(
            f"There is no configuration {configuration}, but {', '.join(configurations)}."
        )
    write_group_pattern(preprocessed, dataset.patient)
    write_split(preprocessed / "splits_final.json", [fold.cases for fold in folds])
    done = preprocessed / f".{configuration}_complete"
    if not done.is_file():
        nnunet.preprocess(
            [dataset.number], configurations=[configuration], num_processes=[processes]
        )
        done.touch()


def settings_name(settings: dict) -> str:
    """Name of a copy of the plans with these settings: the same settings, the same name."""
    if not settings:
        return PLANS
    text = json.dumps(settings, sort_keys=True)
    return f"{PLANS}_{sha1(text.encode()).hexdigest()[:8]}"
