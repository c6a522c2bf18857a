"""``nnUNetv2_plgcl_demo``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_plgcl.commands.errors import errors_in_one_line


def demo(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_demo",
        description="Train nnU-Net and PLGCL on a generated phantom and compare them in an HTML "
        "report: no data and no GPU needed, about six minutes on two cores. Your own nnU-Net "
        "folders stay untouched.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("plgcl_demo"), help="default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo there")
    parser.add_argument("-device", "--device", choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="other patients, another split, other weights of our trainers (default %(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed takes numbers from 0 on")

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.demo import run_demo
        from nnunetv2_plgcl.evaluation.launch import require_device

        require_device(args.device)
        run_demo(args.output, args.overwrite, args.device, args.seed)
