#!/usr/bin/env python3
"""Time and contrastive loss of every guide x embedder x form of the loss, side by side.

Trains each for a few iterations on a planned and split dataset, half of them warm-up, then times
it in turns with the mean teacher, so that a machine that others use slows both. Prints a Markdown
table: milliseconds per iteration of the second stage (median, loading included), their ratio to
the mean teacher's, and the mean contrastive loss of the last tenth of the training. The sampled
form and the closed form are different quantities: compare losses of one form only.

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
from collections.abc import Sequence
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
TURNS, ITERATIONS_A_TURN = 5, 4


def start(
    trainer_class: type[nnUNetTrainerSemiSupervised],
    arguments: argparse.Namespace,
    settings: dict[str, Any],
) -> nnUNetTrainerSemiSupervised:
    """A trainer of two epochs, the first of them warm-up, ready for its first iteration."""
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(arguments.dataset)
    plans = json.loads((folder / f"{arguments.plans}.json").read_text())
    plans["continue_training"] = False
    plans["configurations"][arguments.configuration]["plgcl"] = {"warmup_fraction": 0.5, **settings}
    dataset = json.loads((folder / "dataset.json").read_text())
    device = torch.device(arguments.device)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = trainer_class(plans, arguments.configuration, arguments.fold, dataset, device)
        trainer.num_epochs, trainer.num_iterations_per_epoch = 2, arguments.iterations // 2
        trainer.on_train_start()
    return trainer


def train(trainer: nnUNetTrainerSemiSupervised) -> list[float]:
    """Both epochs, without validation; returns the contrastive loss of each iteration."""
    losses = []
    for epoch in range(2):
        trainer.current_epoch = epoch
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            report = trainer.train_step(next(trainer.dataloader_train))
            losses.append(float(report["loss_contrastive"]))
    return losses


def time_in_turns(trainers: Sequence[nnUNetTrainerSemiSupervised]) -> list[float]:
    """Median milliseconds per iteration of each."""
    durations: list[list[float]] = [[] for _ in trainers]
    for _ in range(TURNS):
        for trainer, seen in zip(trainers, durations, strict=True):
            for _ in range(ITERATIONS_A_TURN):
                before = time.perf_counter()
                trainer.train_step(next(trainer.dataloader_train))  # ends with losses on the host
                seen.append(1000 * (time.perf_counter() - before))
    return [statistics.median(seen) for seen in durations]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", dest="dataset", required=True, help="dataset name or id")
    parser.add_argument("-c", dest="configuration", required=True)
    parser.add_argument("-f", dest="fold", type=int, default=0)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-device", default="cuda", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--guides", nargs="+", default=GUIDES, choices=GUIDES)
    parser.add_argument("--embeddings", nargs="+", default=EMBEDDINGS, choices=EMBEDDINGS)
    parser.add_argument("--forms", nargs="+", default=EXPECTATIONS, choices=EXPECTATIONS)
    parser.add_argument(
        "--feature-stages", nargs="*", default=[], metavar="LIST", help="also these, as [-1] [-1,0]"
    )
    arguments = parser.parse_args()

    names = ("guide", "embedding", "expectation")
    rows = [
        (" | ".join(values), dict(zip(names, values, strict=True)))
        for values in itertools.product(arguments.guides, arguments.embeddings, arguments.forms)
    ]
    rows += [
        (f"entropy | feature, stages {stages} | sampled", {"feature_stages": stages})
        for stages in map(json.loads, arguments.feature_stages)
    ]
    print("| guide | embedding | form | ms per iteration | ratio | final contrastive loss |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results  # read anew by each trainer
        reference = start(nnUNetTrainerMeanTeacher, arguments, {})
        train(reference)
        for name, settings in rows:
            trainer = start(nnUNetTrainerPLGCL, arguments, settings)
            losses = train(trainer)
            final = statistics.mean(losses[-max(1, len(losses) // 10) :])
            duration, of_reference = time_in_turns((trainer, reference))
            ratio = duration / of_reference
            print(f"| {name} | {duration:.0f} | {ratio:.2f} | {final:.3f} |", flush=True)


if __name__ == "__main__":
    main()
