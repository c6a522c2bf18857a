"""``nnUNetv2_plgcl_evaluate``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_plgcl.commands.arguments import add_processes
from nnunetv2_plgcl.commands.errors import errors_in_one_line


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_evaluate",
        description="DSC, HD95, ASSD (symmetric) and ASD (from prediction to reference) of a "
        "folder of predictions: a table, a JSON file in the shape of nnU-Net's summary.json, and "
        "a CSV file beside it.",
    )
    parser.add_argument("reference", type=Path, help="folder")
    parser.add_argument("prediction", type=Path, help="folder")
    parser.add_argument("-djfile", type=Path, required=True, help="dataset.json")
    parser.add_argument("--voxel", action="store_true", help="distances in voxels instead of mm")
    parser.add_argument(
        "-o", type=Path, metavar="OUT.json", help="default: plgcl_summary.json with the predictions"
    )
    add_processes(parser)
    args = parser.parse_args(argv)
    output = args.o or args.prediction / "plgcl_summary.json"
    if output.suffix != ".json":
        parser.error(f"-o names a .json file, not {output}")
    if args.o and not output.parent.is_dir():
        parser.error(f"there is no folder {output.parent}")

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.datasets.description import class_names, read_dataset
        from nnunetv2_plgcl.evaluation import evaluate as library

        dataset = read_dataset(args.djfile)
        summary = library.evaluate_folder(
            args.reference, args.prediction, dataset, voxel=args.voxel, processes=args.np
        )
        library.write_json(summary, output)
        library.write_csv(summary, output.with_suffix(".csv"))
        print(library.table(summary, class_names(dataset)))
        for warning in summary["warnings"]:
            print(f"warning {warning}")
        print(f"Written: {output}, {output.with_suffix('.csv')}")
