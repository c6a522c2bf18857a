"""Images for the network, patch and batch of ACDC's CPU configuration, without ACDC."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from bench.datasets import DATASETS

from nnunetv2_plgcl.datasets.files import read_json, write_json, write_split
from nnunetv2_plgcl.datasets.phantom import write_phantom

DATASET, CONFIGURATION = "Dataset001_Phantom", "2d_small"
LABELLED, UNLABELLED = 4, 6  # volumes; the others are for validation


def prepare_demo(folder: Path) -> None:
    """Generate, plan and preprocess; sets nnU-Net's variables for this process."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / f"nnUNet_{name}")
        (folder / f"nnUNet_{name}").mkdir()
    os.environ.pop("nnUNet_n_proc_DA", None)  # the planner crashes under 0
    cases = write_phantom(folder / "nnUNet_raw" / DATASET, training=6, test=0)
    preprocessed = folder / "nnUNet_preprocessed" / DATASET
    with contextlib.redirect_stdout(io.StringIO()):
        nnunet.extract_fingerprints([1], num_processes=1, show_progress_bar=False)
        nnunet.plan_experiments([1])
        plans = read_json(preprocessed / "nnUNetPlans.json")
        acdc = DATASETS["acdc"]
        plans["configurations"][CONFIGURATION] = acdc.cpu[CONFIGURATION].made_from(
            CONFIGURATION, acdc.base, plans["configurations"][acdc.base]
        )
        write_json(preprocessed / "nnUNetPlans.json", plans)
        nnunet.preprocess(
            [1], configurations=[CONFIGURATION], num_processes=[1], show_progress_bar=False
        )
    labelled, rest = cases[:LABELLED], cases[LABELLED:]
    split = {"train": labelled, "unlabelled": rest[:UNLABELLED], "val": rest[UNLABELLED:]}
    write_split(preprocessed / "splits_final.json", [split])
