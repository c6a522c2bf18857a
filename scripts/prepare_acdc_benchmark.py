#!/usr/bin/env python3
"""Plan and preprocess ACDC for the benchmarks, in the folders that nnU-Net's variables name.

Fold 0 has 7 labelled patients, fold 1 has 14 and fold 2 has 3, as the paper's protocol; fold 3 has
all 70, the upper line. Validation patients are the same 10 in each. Configuration 2d is nnU-Net's
own plan. Two are for a CPU, with spacing 2 x 2, batch 8 and half the features: 2d_small has patches
of 96 x 96; 2d_half has those of nnU-Net's plan at half the resolution, 128 x 112, which show all of
a slice of median size, and a stage more. Preprocessing is done once: what is there is kept.

    python scripts/prepare_acdc_benchmark.py FOLDER -d 27 -c 2d_small
    python scripts/prepare_acdc_benchmark.py FOLDER -d 27 -c 2d_small \\
        -p Slow --settings '{"ema_decay": 0.9999}'

FOLDER is in nnU-Net's raw layout, with cases named patientNNN_frameNN. The second call also writes
the plans Slow, a copy with these settings.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

from nnunetv2_plgcl.datasets.convert.run import read_protocol
from nnunetv2_plgcl.datasets.files import nnunet_folder, write_split
from nnunetv2_plgcl.datasets.split import group_cases
from nnunetv2_plgcl.evaluation.launch import write_plans_copy
from nnunetv2_plgcl.settings import PLANS_KEY
from nnunetv2_plgcl.settings import read_settings as validated
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import PLGCLSettings

TRAINING_PATIENTS = 70
PLANS = "nnUNetPlans"
CPU_CONFIGURATIONS = {"2d_half": ((128, 112), 5), "2d_small": ((96, 96), 4)}  # patch, stages


def cpu_configuration(name: str, planned: dict) -> dict:
    """A configuration of ``CPU_CONFIGURATIONS`` from nnU-Net's 2d configuration."""
    patch_size, stages = CPU_CONFIGURATIONS[name]
    architecture = json.loads(json.dumps(planned["architecture"]))
    arguments = architecture["arch_kwargs"]
    for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
        arguments[key] = arguments[key][:stages]
    arguments["n_conv_per_stage_decoder"] = arguments["n_conv_per_stage_decoder"][: stages - 1]
    features = [number // 2 for number in arguments["features_per_stage"][:stages]]
    arguments.update(n_stages=stages, features_per_stage=features)
    return {
        "inherits_from": "2d",
        "data_identifier": f"nnUNetPlans_{name}",
        "spacing": [2.0, 2.0],
        "patch_size": list(patch_size),
        "batch_size": 8,
        "architecture": architecture,
    }


def splits(cases: list[str]) -> list[dict[str, list[str]]]:
    """The paper's folds, then one with every training patient labelled.

    Raises:
        ValueError: cases of other patients than those of the paper's split, or some are missing.
    """
    protocol = read_protocol("acdc")
    patients = group_cases(cases, r"patient\d+")
    training = sorted(set(patients) - {*protocol.validation, *protocol.test})
    lacking = {*protocol.validation, *(p for fold in protocol.labelled.values() for p in fold)}
    lacking -= set(patients)
    if lacking or len(training) != TRAINING_PATIENTS:
        raise ValueError(
            f"Needed are ACDC's {TRAINING_PATIENTS} training and {len(protocol.validation)} "
            f"validation patients of the paper's split, there are {len(training)} for training"
            f"{' and no ' + ', '.join(sorted(lacking)) if lacking else ''}. ACDC's own test "
            f"patients, 101 to 150, do not belong here."
        )
    folds = []
    for labelled in (*protocol.labelled.values(), training):
        parts = {"train": labelled, "val": protocol.validation,
                 "unlabelled": set(training) - set(labelled)}  # fmt: skip
        folds.append({
            part: sorted(case for patient in members for case in patients[patient])
            for part, members in parts.items() if members
        })  # fmt: skip
    return folds


def labelled_cases(folder: Path) -> list[str]:
    """Names of the cases with a label in a folder of nnU-Net's raw layout, sorted."""
    return sorted(file.name.partition(".")[0] for file in (folder / "labelsTr").iterdir())


def read_settings(text: str | None, plans: str) -> dict:
    """
    Raises:
        ValueError: no JSON, or no settings of ours; settings for the original plans.
        TypeError: a setting of the wrong type.
    """
    if not text:
        return {}
    if plans == PLANS:
        raise ValueError(f"Settings need plans of their own: name them, other than {PLANS}.")
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The settings are no JSON ({error}): {text}") from error
    validated(PLGCLSettings, {PLANS_KEY: settings})
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="ACDC in nnU-Net's raw layout")
    parser.add_argument("-d", dest="number", type=int, default=27, help="dataset number")
    parser.add_argument(
        "-c", dest="configuration", required=True, choices=("2d", *CPU_CONFIGURATIONS)
    )
    parser.add_argument("-p", dest="plans", default=PLANS, help="plans, or a name for a copy")
    parser.add_argument("--settings", help='JSON, under "plgcl" in the copy')
    parser.add_argument("--np", dest="processes", type=int, default=2)
    arguments = parser.parse_args()

    name = f"Dataset{arguments.number:03d}_ACDC"
    try:
        settings = read_settings(arguments.settings, arguments.plans)
        raw = nnunet_folder("nnUNet_raw") / name
        preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    except (TypeError, ValueError) as error:
        sys.exit(str(error))
    if not (arguments.source / "imagesTr").is_dir():
        sys.exit(f"{arguments.source} is not in nnU-Net's raw layout: it has no folder imagesTr.")
    cases = labelled_cases(arguments.source)
    try:
        folds = splits(cases)
    except ValueError as error:
        sys.exit(f"{arguments.source}: {error}")
    if not raw.is_dir():
        shutil.copytree(arguments.source, raw.with_suffix(".part"), dirs_exist_ok=True)
        raw.with_suffix(".part").rename(raw)
    elif labelled_cases(raw) != cases:
        sys.exit(f"{raw}, from an earlier call, holds other cases than {arguments.source}.")
    plans_file = preprocessed / f"{PLANS}.json"
    if not plans_file.is_file():
        nnunet.extract_fingerprints([arguments.number], num_processes=arguments.processes)
        nnunet.plan_experiments([arguments.number])
    plans = json.loads(plans_file.read_text())
    configurations = plans["configurations"]
    if arguments.configuration not in configurations:
        configurations[arguments.configuration] = cpu_configuration(
            arguments.configuration, configurations["2d"]
        )
        plans_file.write_text(json.dumps(plans, indent=4))
    if settings:
        try:
            write_plans_copy(name, PLANS, arguments.plans, arguments.configuration, settings)
        except ValueError as error:
            sys.exit(str(error))
    split_file = preprocessed / "splits_final.json"
    if not split_file.is_file():
        write_split(split_file, folds)
    done = preprocessed / f".{arguments.configuration}_complete"
    if not done.is_file():
        nnunet.preprocess(
            [arguments.number],
            configurations=[arguments.configuration],
            num_processes=[arguments.processes],
        )
        done.touch()


if __name__ == "__main__":
    main()
