"""``nnUNetv2_plgcl_compare``"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_plgcl.commands.arguments import (
    add_configuration,
    add_plans,
    add_processes,
    fold,
    positive,
)
from nnunetv2_plgcl.commands.errors import errors_in_one_line

if TYPE_CHECKING:
    from nnunetv2_plgcl.evaluation.publish import Published

TRAINED = ("d", "c", "f", "tr")  # what a comparison of trainers needs
ONLY_TRAINED = ("test", "run", "slurm", "trust_split", "postprocessing")


def compare(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = _parser()
    args = parser.parse_args(argv)
    _refuse_contradictions(parser, args)

    with errors_in_one_line(parser.prog):
        # nnU-Net talks while it works; what is for programs stands alone
        with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
            published = _compare_predictions(args) if args.predictions else _compare_trainers(args)
        if args.json:
            print(published.content)
            return
        print(published.table)
        for warning in published.warnings:
            print(f"warning {warning}")
        for note in published.notes:
            print(f"note    {note}")
        print("Written: " + ", ".join(str(file) for file in published.files))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_compare",
        usage="%(prog)s -d DATASET -c CONFIG -f FOLD [FOLD ...] -tr TRAINER [TRAINER ...] "
        "[options]\n       %(prog)s --predictions NAME=FOLDER [NAME=FOLDER ...] --labels FOLDER "
        "-djfile FILE [options]",
        description="Compare trainers on the same folds, or any predictions of the same cases: "
        "table (Markdown, CSV, JSON, LaTeX) with paired tests and intervals, and one HTML report "
        "with figures. Refuses trainings whose labelled cases, validation cases, plans or "
        "iterations differ.",
    )
    trained = parser.add_argument_group("trainers")
    trained.add_argument("-d", metavar="DATASET", help="number or name")
    add_configuration(trained, required=False)
    trained.add_argument(
        "-f", metavar="FOLD", type=fold, nargs="+", help="numbers, or all (with --test)"
    )
    trained.add_argument(
        "-tr", metavar="TRAINER", nargs="+", help="the first is what the others are compared with"
    )
    add_plans(trained)
    trained.add_argument(
        "--test", type=Path, nargs=2, metavar=("IMAGES", "LABELS"),
        help="folders of test images and their labels (default: the validation cases)",
    )  # fmt: skip
    trained.add_argument(
        "--run", action="store_true", help="train and predict what is missing; run again to go on"
    )
    trained.add_argument(
        "--seeds", type=positive, default=1, metavar="N",
        help="repetitions; from the second on with plans of their own, PLANS_seed1, ... "
        "(default 1)",
    )  # fmt: skip
    trained.add_argument(
        "--launcher", choices=("local", "slurm"), default="local",
        help="where --run trains (default: %(default)s)",
    )  # fmt: skip
    trained.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="options for sbatch, e.g. partition=gpu time=1-00:00:00",
    )  # fmt: skip
    trained.add_argument(
        "--jobs", type=positive, default=1, metavar="N",
        help="trainings at once on this machine, all on the same device (default %(default)s)",
    )  # fmt: skip
    trained.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), default="cuda",
        help="for --run and --test (default: %(default)s)",
    )  # fmt: skip
    trained.add_argument(
        "--trust-split", action="store_true",
        help="the split file is younger than a training, but was merely copied",
    )  # fmt: skip
    trained.add_argument(
        "--postprocessing", action="store_true",
        help="apply nnU-Net's own postprocessing (largest component), determined for each training "
        "on its validation cases as nnUNetv2_find_best_configuration does",
    )  # fmt: skip
    any_origin = parser.add_argument_group("predictions of any origin")
    any_origin.add_argument(
        "--predictions", metavar="NAME=FOLDER", nargs="+", default=[],
        help="the first is what the others are compared with",
    )  # fmt: skip
    any_origin.add_argument("--labels", type=Path, metavar="FOLDER", help="their references")
    any_origin.add_argument("-djfile", type=Path, metavar="FILE", help="dataset.json")
    parser.add_argument("--voxel", action="store_true", help="distances in voxels instead of mm")
    parser.add_argument(
        "--json", action="store_true", help="print results as JSON instead of tables"
    )
    parser.add_argument(
        "-o", type=Path, default=Path("plgcl_compare"), metavar="OUTPUT",
        help="folder (default: %(default)s)",
    )  # fmt: skip
    add_processes(parser)
    return parser


def _refuse_contradictions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.predictions:
        _refuse_contradictions_of_predictions(parser, args)
        return
    missing = [f"-{name}" for name in TRAINED if not getattr(args, name)]
    if missing:
        parser.error(f"needed: {', '.join(missing)} (or --predictions)")
    if args.labels or args.djfile:
        parser.error("--labels and -djfile go with --predictions; test labels with --test")
    if len(set(args.tr)) != len(args.tr) or len(set(args.f)) != len(args.f):
        parser.error("a trainer or a fold is named twice")
    if any("=" not in option for option in args.slurm):
        parser.error("--slurm takes NAME=VALUE")
    if args.slurm and args.launcher != "slurm":
        parser.error("--slurm needs --launcher slurm")
    if args.jobs > 1 and args.launcher != "local":
        parser.error("--jobs needs --launcher local: Slurm decides how many jobs run at once")


def _refuse_contradictions_of_predictions(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    trained = [name for name in (*TRAINED, *ONLY_TRAINED) if getattr(args, name)]
    if trained:
        parser.error(f"--predictions are compared as they are, without {trained[0]}")
    if not args.labels or not args.djfile:
        parser.error("--predictions needs --labels FOLDER and -djfile FILE")
    names = [word.partition("=")[0] for word in args.predictions]
    if any(not all(word.partition("=")) for word in args.predictions):
        parser.error("--predictions takes NAME=FOLDER")
    if len(set(names)) != len(names):
        parser.error("a name of --predictions is given twice")


def _compare_predictions(args: argparse.Namespace) -> Published:
    from nnunetv2_plgcl.datasets.description import read_dataset
    from nnunetv2_plgcl.evaluation.compare_predictions import compare_predictions

    folders = {name: Path(f) for name, f in (word.split("=", 1) for word in args.predictions)}
    return compare_predictions(
        folders, args.labels, read_dataset(args.djfile), args.o, args.voxel, args.np
    )


def _compare_trainers(args: argparse.Namespace) -> Published:
    from nnunetv2_plgcl.evaluation.compare import compare as compare_trainers
    from nnunetv2_plgcl.evaluation.plan import Request

    return compare_trainers(
        Request(
            dataset=args.d, configuration=args.c, folds=args.f, trainers=args.tr,
            output=args.o, plans=args.p, test=tuple(args.test) if args.test else None,
            run=args.run, seeds=args.seeds, launcher=args.launcher,
            slurm=dict(option.split("=", 1) for option in args.slurm), jobs=args.jobs,
            device=args.device,
            voxel=args.voxel, trust_split=args.trust_split,
            postprocessing=args.postprocessing, processes=args.np,
        )
    )  # fmt: skip
