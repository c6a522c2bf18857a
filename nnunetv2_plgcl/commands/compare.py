"""``nnUNetv2_plgcl_compare``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_plgcl.commands.arguments import add_dataset, add_plans, add_processes, positive
from nnunetv2_plgcl.commands.errors import errors_in_one_line


def compare(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_compare",
        description="Compare trainers on the same folds: table (Markdown, CSV, LaTeX) with paired "
        "tests and intervals, and one HTML report with figures. Refuses runs whose labelled "
        "cases, validation cases, plans or iterations differ.",
    )
    add_dataset(parser)
    parser.add_argument("-c", required=True, metavar="CONFIG")
    parser.add_argument("-f", required=True, metavar="FOLD", type=int, nargs="+")
    parser.add_argument(
        "-tr", required=True, metavar="TRAINER", nargs="+",
        help="the first is what the others are compared with",
    )  # fmt: skip
    add_plans(parser)
    parser.add_argument(
        "--test", type=Path, nargs=2, metavar=("IMAGES", "LABELS"),
        help="folders of test images and their labels (default: the validation cases)",
    )  # fmt: skip
    parser.add_argument(
        "--run", action="store_true", help="train and predict what is missing; run again to go on"
    )
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N",
        help="repetitions; from the second on with plans of their own, PLANS_seed1, ... "
        "(default 1)",
    )  # fmt: skip
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="options for sbatch, e.g. partition=gpu time=1-00:00:00",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N",
        help="trainings at once on this machine, all on the same device (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), default="cuda",
        help="for --run and --test (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--voxel", action="store_true", help="distances in voxels instead of mm")
    parser.add_argument(
        "--trust-split", action="store_true",
        help="the split file is younger than a training, but was merely copied",
    )  # fmt: skip
    parser.add_argument(
        "--postprocessing", action="store_true",
        help="apply nnU-Net's own postprocessing (largest component), determined for each training "
        "on its validation cases as nnUNetv2_find_best_configuration does",
    )  # fmt: skip
    parser.add_argument(
        "-o", type=Path, default=Path("plgcl_compare"), metavar="OUTPUT",
        help="folder (default: %(default)s)",
    )  # fmt: skip
    add_processes(parser)
    args = parser.parse_args(argv)
    if len(set(args.tr)) != len(args.tr) or len(set(args.f)) != len(args.f):
        parser.error("a trainer or a fold is named twice")
    if any("=" not in option for option in args.slurm):
        parser.error("--slurm takes NAME=VALUE")
    if args.slurm and args.launcher != "slurm":
        parser.error("--slurm needs --launcher slurm")
    if args.jobs > 1 and args.launcher != "local":
        parser.error("--jobs needs --launcher local: Slurm decides how many jobs run at once")

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.evaluation.compare import Request
        from nnunetv2_plgcl.evaluation.compare import compare as run_comparison

        table, written = run_comparison(
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
        print(table)
        print("Written: " + ", ".join(str(file) for file in written))
