"""``nnUNetv2_plgcl_check``"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunetv2_plgcl.commands.arguments import (
    add_configuration,
    add_dataset,
    add_group_pattern,
    add_plans,
    add_processes,
    fold,
)
from nnunetv2_plgcl.commands.errors import errors_in_one_line

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunetv2_plgcl.datasets.check import Finding


def check(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_check",
        description="Find what would make a training wrong or wasteful before it starts. Exit "
        "status 1 where there is an error. Labels of unlabelled cases are not opened.",
    )
    add_dataset(parser)
    add_configuration(parser)
    parser.add_argument("-f", required=True, metavar="FOLD", type=fold, help="number or all")
    parser.add_argument(
        "-tr", default="nnUNetTrainerPLGCL", metavar="TRAINER", help="default: %(default)s"
    )
    add_plans(parser)
    add_group_pattern(parser)
    add_processes(parser)
    parser.add_argument(
        "--all-cases", action="store_true", help="name every case, not the first three"
    )
    args = parser.parse_args(argv)

    with errors_in_one_line(parser.prog):
        from nnunetv2_plgcl.datasets import check as library
        from nnunetv2_plgcl.datasets.description import read_plans
        from nnunetv2_plgcl.datasets.files import dataset_name
        from nnunetv2_plgcl.datasets.names import all_names

        plans, dataset = read_plans(dataset_name(args.d), args.p, args.c)
        with all_names(args.all_cases):
            findings = library.check_training(
                plans, dataset, args.c, args.f, args.group_by, args.np, all_values=True
            )
            trainer, refused = library.try_start(args.tr, plans, dataset, args.c, args.f)
            findings += refused
            if trainer is not None:
                findings.append(library.estimate_memory(trainer))
                findings += _first_stage(trainer, plans, args.c, args.f)
        for finding in findings:
            print(f"{finding.level:8}{finding.text}")
        errors = sum(finding.level == "error" for finding in findings)
        warnings = sum(finding.level == "warning" for finding in findings)
        print(f"{errors} errors, {warnings} warnings.")
        sys.exit(1 if errors else 0)


def _first_stage(
    trainer: nnUNetTrainer, plans: dict, configuration: str, fold_number: int | str
) -> list[Finding]:
    """What the second stage of a cascade lacks of the first one."""
    from nnunetv2_plgcl.datasets.check import Finding
    from nnunetv2_plgcl.evaluation.folds import read_fold
    from nnunetv2_plgcl.semisupervised.cascade import require_first_stage

    if not trainer.is_cascaded:
        return []
    try:
        cases = read_fold(plans, configuration, fold_number)
        require_first_stage(trainer, [*cases.labelled, *cases.validation], cases.unlabelled)
    except (ValueError, FileNotFoundError) as error:
        return [Finding("error", str(error))]
    return []
