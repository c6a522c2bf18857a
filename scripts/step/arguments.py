"""What the benchmarks of a training's step and of its start are both told."""

from __future__ import annotations

import argparse

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerMeanTeacher", "nnUNetTrainerPLGCL")


def add_training(parser: argparse.ArgumentParser) -> None:
    """Options for data, configuration, trainers and device."""
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("-d", dest="dataset", help="dataset name or id, planned, preprocessed, split")
    data.add_argument("--demo", action="store_true", help="generate images for a small network")
    parser.add_argument("-c", dest="configuration", help="configuration, with -d")
    parser.add_argument("-f", dest="fold", type=int, default=0)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-tr", dest="trainers", nargs="+", default=TRAINERS, metavar="NAME")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda", "mps"))


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with dataset and configuration of the demo where it is asked for."""
    arguments = parser.parse_args()
    if arguments.demo:
        from step.demo import CONFIGURATION, DATASET

        arguments.dataset, arguments.configuration = DATASET, CONFIGURATION
    elif arguments.configuration is None:
        parser.error("name the configuration of the dataset: -c")
    return arguments
