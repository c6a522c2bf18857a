#!/usr/bin/env python3
"""Time and contrastive loss of every guide x embedder x form of the loss, side by side.

Trains each for a few iterations on a planned and split dataset, half of them warm-up, and prints
a Markdown table: milliseconds per iteration of the second stage (median, loading included), their
ratio to the mean teacher's, and the mean contrastive loss of the last tenth. The sampled form and
the closed form are different quantities: compare losses within a column of one form only.

    python scripts/benchmark_contrast.py -d 100 -c 2d -f 0 --iterations 200 -device cuda
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

GUIDES = ("entropy", "lowest_entropy", "confidence", "cosine")
EMBEDDINGS = ("feature", "crop")
EXPECTATIONS = ("sampled", "closed_form")


def measure(
    trainer_class: type[nnUNetTrainerSemiSupervised],
    arguments: argparse.Namespace,
    settings: dict[str, Any],
) -> tuple[float, float]:
    """Train and return (ms per iteration in the second stage, final contrastive loss)."""
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(arguments.dataset)
    plans = json.loads((folder / f"{arguments.plans}.json").read_text())
    plans["continue_training"] = False
    plans["configurations"][arguments.configuration]["plgcl"] = {"warmup_fraction": 0.5, **settings}
    dataset = json.loads((folder / "dataset.json").read_text())
    device = torch.device(arguments.device)
    trainer = trainer_class(plans, arguments.configuration, arguments.fold, dataset, device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, arguments.iterations // 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    trainer.logger.plot_progress_png = lambda folder: None

    ends: list[float] = []
    losses: list[float] = []

    def train_step(batch: dict) -> dict:
        report: dict = type(trainer).train_step(trainer, batch)  # brings its losses to the host
        ends.append(time.perf_counter())
        losses.append(float(report["loss_contrastive"]))
        return report

    trainer.train_step = train_step
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.run_training()
    second_stage = ends[len(ends) // 2 :]
    durations = [after - before for before, after in itertools.pairwise(second_stage)]
    last = losses[-max(1, len(losses) // 10) :]
    return 1000 * statistics.median(durations), statistics.mean(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", dest="dataset", required=True, help="dataset name or id")
    parser.add_argument("-c", dest="configuration", required=True)
    parser.add_argument("-f", dest="fold", type=int, default=0)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-device", default="cuda", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument(
        "--feature-stages", type=int, nargs="*", default=[], help="time these stages as well"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("error")

    rows: list[tuple[str, dict[str, Any]]] = [
        (f"{guide} | {embedding} | {expectation}", dict(zip(("guide", "embedding", "expectation"),
         (guide, embedding, expectation), strict=True)))
        for guide, embedding, expectation in itertools.product(GUIDES, EMBEDDINGS, EXPECTATIONS)
    ]  # fmt: skip
    rows += [
        (f"entropy | feature, stage {stage} | sampled", {"feature_stages": [stage]})
        for stage in arguments.feature_stages
    ]
    print("| guide | embedding | form | ms per iteration | ratio | final contrastive loss |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results  # read anew by each trainer
        reference, _ = measure(nnUNetTrainerMeanTeacher, arguments, {})
        print(f"| mean teacher | | | {reference:.0f} | 1.00 | |", flush=True)
        for name, settings in rows:
            duration, loss = measure(nnUNetTrainerPLGCL, arguments, settings)
            ratio = duration / reference
            print(f"| {name} | {duration:.0f} | {ratio:.2f} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    main()
