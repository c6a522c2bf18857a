"""``nnUNetv2_plgcl_pseudolabel``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_plgcl.commands.arguments import (
    add_configuration,
    add_dataset,
    add_plans,
    add_processes,
    fold,
    fraction,
    positive,
)
from nnunetv2_plgcl.commands.errors import errors_in_one_line


def pseudolabel(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_pseudolabel",
        description="Label the unlabelled images of a dataset with a trained model. True and "
        "pseudo-labels can be written side by side as a new dataset of nnU-Net; a page shows "
        "them, the least sure first. Run again to go on; corrected predictions are kept.",
    )
    add_dataset(parser)
    add_configuration(parser)
    parser.add_argument("-tr", required=True, metavar="TRAINER")
    parser.add_argument("-f", required=True, metavar="FOLD", type=fold, help="number or all")
    add_plans(parser)
    parser.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s"
    )
    parser.add_argument(
        "-o", type=Path, default=Path("plgcl_pseudolabels"), metavar="FOLDER",
        help="for predictions, JSON and page (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--filter", choices=("none", "largest", "confidence"), default="confidence",
        help="largest: only the largest component of each class; confidence: components of a mean "
        "probability below --min-confidence are ignored in training (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--min-confidence", type=fraction, default=0.7, metavar="X",
        help="cases below are left out, components below ignored (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--new-dataset", type=positive, metavar="ID", help="number of a dataset to write"
    )
    parser.add_argument(
        "--iterate", type=positive, default=1, metavar="N",
        help="rounds; between them a model is trained on the new dataset, numbered ID, ID+1, ..., "
        "with TRAINER, or with nnUNetTrainer where TRAINER needs unlabelled cases",
    )  # fmt: skip
    parser.add_argument(
        "--rank", action="store_true",
        help="print the cases, first the one that a person should label next, and why",
    )  # fmt: skip
    add_processes(parser)
    args = parser.parse_args(argv)
    if args.iterate > 1 and args.new_dataset is None:
        parser.error("--iterate trains on what was labelled, so it needs --new-dataset")

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.pseudolabels.record import describe_ranking
        from nnunetv2_plgcl.pseudolabels.request import Request
        from nnunetv2_plgcl.pseudolabels.rounds import pseudolabel as label

        results = label(
            Request(
                args.d, args.c, args.tr, args.f, plans=args.p, device=args.device, output=args.o,
                filter=args.filter, min_confidence=args.min_confidence,
                new_dataset=args.new_dataset, rounds=args.iterate, processes=args.np,
            )
        )  # fmt: skip
        for number, result in enumerate(results, start=1):
            if len(results) > 1:
                print(f"round {number}:")
            for case, reason in result.left_out.items():
                print(f"left out: {case}: {reason}")
            if result.dataset:
                number_of = len(set(result.cases) - set(result.left_out))
                print(f"{result.dataset}: {number_of} pseudo-labels.")
        if args.rank:
            print("\n".join(describe_ranking(result.cases)))
        print("Written: " + ", ".join(str(file) for file in result.files))
        print(f"Next: {result.following}")
