"""``nnUNetv2_plgcl_convert``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_plgcl.commands.arguments import add_processes
from nnunetv2_plgcl.commands.errors import errors_in_one_line


def convert(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    from nnunetv2_plgcl.datasets.convert import run as library  # knows which datasets there are

    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_convert",
        description="Write an official download in nnU-Net's raw format. After an interruption "
        "run it again.",
    )
    parser.add_argument("dataset", choices=sorted(library.SOURCES))
    parser.add_argument("source", type=Path, help="folder of the download, or a tar archive of it")
    parser.add_argument("-d", type=int, required=True, metavar="ID", help="number for nnU-Net")
    parser.add_argument(
        "--protocol", choices=[library.PAPER],
        help="also write the paper's split: one fold for each number of labelled cases",
    )  # fmt: skip
    parser.add_argument(
        "--cine", action="store_true",
        help="ACDC: frames of the 4D files between the labelled ones as unlabelled images (needs "
        "--protocol)",
    )  # fmt: skip
    add_processes(parser)
    args = parser.parse_args(argv)

    with errors_in_one_line(parser.prog):
        lines = library.convert(
            args.dataset, args.source, args.d,
            protocol=args.protocol, cine=args.cine, processes=args.np,
        )  # fmt: skip
        print("\n".join(lines))
