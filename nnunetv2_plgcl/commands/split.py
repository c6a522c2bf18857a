"""``nnUNetv2_plgcl_split``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_plgcl.commands.arguments import add_dataset, add_group_pattern
from nnunetv2_plgcl.commands.errors import errors_in_one_line


def split(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_split",
        description="Write a labelled / unlabelled / validation split by patient into "
        "splits_final.json. nnUNetTrainer on the same fold trains on the labelled cases alone.",
    )
    add_dataset(parser)
    parser.add_argument(
        "--labelled", nargs="+", metavar="AMOUNT|NAME",
        help="with a decimal point the fraction of the groups outside validation (0.1), without "
        "one a number of groups (7; 1 is one group), or names of groups or cases (default in a "
        "dataset with pseudo-labels: all that have a true or corrected label)",
    )  # fmt: skip
    parser.add_argument(
        "--val", nargs="+", metavar="AMOUNT|NAME",
        help="validation groups: fraction of all groups, number, or names (default 0.2; in a "
        "dataset with pseudo-labels the validation cases of the model that wrote them)",
    )  # fmt: skip
    add_group_pattern(parser)
    parser.add_argument(
        "--folds", type=int, default=1,
        help="how many (default 1), with different validation sets, or different labelled ones if "
        "--val names cases",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument(
        "--force", action="store_true", help="replace another split (kept as backup)"
    )
    parser.add_argument(
        "--strict", action="store_true",
        help="move unlabelled images to imagesUn and hide their labels, so that planning does not "
        "see them; then plan and preprocess again",
    )  # fmt: skip
    parser.add_argument("--undo", action="store_true", help="undo --strict")
    args = parser.parse_args(argv)
    if args.undo and args.labelled is not None:
        parser.error("--undo goes alone, without --labelled")
    if args.strict and args.folds != 1:
        parser.error("--strict hides labels once for all folds, so it takes one fold")

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.datasets import split_dataset as library

        if args.undo:
            library.undo_strict(args.d)
        else:
            library.split_dataset(
                args.d, args.labelled, args.val,
                group_by=args.group_by, folds=args.folds, seed=args.seed,
                strict=args.strict, force=args.force,
            )  # fmt: skip
