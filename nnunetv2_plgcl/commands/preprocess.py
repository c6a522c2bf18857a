"""``nnUNetv2_plgcl_preprocess``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_plgcl.commands.arguments import add_dataset, add_plans, add_processes
from nnunetv2_plgcl.commands.errors import errors_in_one_line


def preprocess(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_preprocess",
        description="Preprocess the images in imagesUn, which have no label, with the dataset's "
        "own plans. Run it after nnUNetv2_plan_and_preprocess; after an interruption run it again.",
    )
    add_dataset(parser)
    parser.add_argument("-c", required=True, metavar="CONFIG", nargs="+", help="configurations")
    add_plans(parser)
    add_processes(parser)
    args = parser.parse_args(argv)

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.datasets.files import dataset_name
        from nnunetv2_plgcl.datasets.preprocess import preprocess_unlabelled

        name = dataset_name(args.d)
        for configuration in args.c:
            made, there = preprocess_unlabelled(name, configuration, args.p, args.np)
            print(f"{configuration}: {made} images preprocessed, {there} were there already.")
