"""``nnUNetv2_plgcl_export``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_plgcl.commands.errors import errors_in_one_line


def export(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_export",
        description="Write a trained model as one of nnUNetTrainer, folder and zip file: stock "
        "nnU-Net predicts with it, without this package.",
    )
    parser.add_argument("model", type=Path, help="folder TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("output", type=Path, help="new folder; OUTPUT.zip is written beside it")
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="numbers or all (default: every one)")
    args = parser.parse_args(argv)

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.export import export_model

        model, archive = export_model(args.model, args.output, args.chk, args.f)
        print(f"Written: {model}\n         {archive}")
        print("To use the zip file elsewhere: nnUNetv2_install_pretrained_model_from_zip FILE")
