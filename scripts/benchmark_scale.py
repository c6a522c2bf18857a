#!/usr/bin/env python3
"""How preprocessing, check, start-up and split grow with the number of unlabelled cases.

Writes a dataset of small images (ten labelled, the rest unlabelled), and prints seconds and
seconds per thousand cases for each step and number. The images are small on purpose: what is
measured is what each case costs beside its voxels.

    python scripts/benchmark_scale.py --cases 1000 10000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LABELLED = 10
SHAPE = (4, 32, 32)


def write_image(folder: Path, case: str, seed: int) -> np.ndarray:
    array = np.random.default_rng(seed).integers(1, 1000, SHAPE).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{case}_0000.nii.gz"))
    return array


def write_dataset(raw: Path, unlabelled: int) -> None:
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    for number in range(LABELLED):
        array = write_image(raw / "imagesTr", f"labelled{number:05d}_a", number)
        label = sitk.GetImageFromArray((array > 500).astype(np.uint8))
        sitk.WriteImage(label, str(raw / "labelsTr" / f"labelled{number:05d}_a.nii.gz"))
    for number in range(unlabelled):
        write_image(raw / "imagesUn", f"un{number:05d}_a", LABELLED + number)
    labels = {"background": 0, "bright": 1}
    generate_dataset_json(str(raw), {0: "MRI"}, labels, LABELLED, ".nii.gz")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - start


def measure(unlabelled: int, folder: Path, processes: int) -> dict[str, float]:
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
        (folder / name).mkdir()
    os.environ["nnUNet_def_n_proc"] = str(processes)
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from nnunetv2_plgcl.datasets.check import check_training
    from nnunetv2_plgcl.datasets.description import read_plans
    from nnunetv2_plgcl.datasets.files import write_split
    from nnunetv2_plgcl.datasets.preprocess import preprocess_unlabelled
    from nnunetv2_plgcl.datasets.split import make_split
    from nnunetv2_plgcl.datasets.unlabelled import preprocessed_cases, unlabelled_folder
    from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

    name = "Dataset901_Scale"
    write_dataset(folder / "raw" / name, unlabelled)

    def plan() -> None:
        nnunet.extract_fingerprints([901], num_processes=processes)
        nnunet.plan_experiments([901])
        nnunet.preprocess([901], configurations=["2d"], num_processes=[processes])

    seconds(plan)
    plans, dataset = read_plans(name, "nnUNetPlans", "2d")

    def start() -> None:
        trainer = nnUNetTrainerPLGCL({**plans, "continue_training": False}, "2d", 0, dataset)
        trainer.dataset_class = nnUNetDatasetBlosc2  # -> initialize
        trainer.dataset_unlabelled = trainer._open_unlabelled()
        trainer._check_data()

    def check() -> None:
        check_training(plans, dataset, "2d", 0, processes=processes)

    def split() -> None:
        names = [f"un{number:05d}_{frame}" for number in range(unlabelled // 2) for frame in "ab"]
        write_split(folder / "split.json", make_split(names, 0.1, folds=5))

    result = {
        "nnUNetv2_plgcl_preprocess": seconds(
            lambda: preprocess_unlabelled(name, "2d", processes=processes)
        ),
        "nnUNetv2_plgcl_check, first time": seconds(check),
        "nnUNetv2_plgcl_check, again": seconds(check),
        "trainer's start-up": seconds(start),
        "nnUNetv2_plgcl_split, 5 folds": seconds(split),
    }
    done = preprocessed_cases(unlabelled_folder(folder / "preprocessed" / name, "nnUNetPlans_2d"))
    assert len(done) == unlabelled
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    print("| step | unlabelled cases | seconds | seconds per 1,000 |")
    print("|---|---|---|---|")
    for number in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            steps = measure(number, Path(folder), arguments.processes)
        for step, duration in steps.items():
            each = 1000 * duration / number
            print(f"| {step} | {number} | {duration:.1f} | {each:.2f} |", flush=True)


if __name__ == "__main__":
    main()
