"""Arguments that several commands take, under nnU-Net's names where it has one."""

from __future__ import annotations

import argparse
import os


def positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def fraction(word: str) -> float:
    number = float(word)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return number


def fold(word: str) -> int | str:
    if word != "all" and not word.isdecimal():
        raise argparse.ArgumentTypeError("must be a number or all")
    return word if word == "all" else int(word)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name")


def add_configuration(parser: argparse._ActionsContainer, required: bool = True) -> None:
    parser.add_argument(
        "-c", required=required, metavar="CONFIG", help="of the plans, e.g. 2d or 3d_fullres"
    )


def add_plans(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "-p", "-plans_name", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s"
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    of_nnunet = os.environ.get("nnUNet_def_n_proc", "")
    default = min(4, int(of_nnunet)) if of_nnunet.isdecimal() and int(of_nnunet) else 4
    parser.add_argument(
        "--np", "-np", type=positive, default=default,
        help="worker processes (default: 4, or nnUNet_def_n_proc where that is less)",
    )  # fmt: skip


def add_group_pattern(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group-by", metavar="REGEX",
        help=r"what in a case name is the patient, e.g. 'patient\d+' (default: guessed)",
    )  # fmt: skip
