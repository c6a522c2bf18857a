"""Console commands: arguments in, library calls, one line on stderr when it cannot be done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def split(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_split``."""
    from nnunetv2_plgcl.datasets import files
    from nnunetv2_plgcl.datasets import split as library
    from nnunetv2_plgcl.datasets.strict import hide_labels, is_strict

    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_split",
        description="Write a labelled / unlabelled / validation split by patient into "
        "splits_final.json. nnUNetTrainer on the same fold trains on the labelled cases alone.",
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name")
    parser.add_argument(
        "--labelled", nargs="+", metavar="AMOUNT|NAME",
        help="with a decimal point the fraction of the groups outside validation (0.1), without "
        "one a number of groups (7; 1 is one group), or names of groups or cases",
    )  # fmt: skip
    parser.add_argument(
        "--val", nargs="+", default=["0.2"], metavar="AMOUNT|NAME",
        help="validation groups: fraction of all groups, number, or names (default 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--group-by", metavar="REGEX",
        help=r"what in a case name is the patient, e.g. 'patient\d+' (default: guessed)",
    )  # fmt: skip
    parser.add_argument(
        "--folds", type=int, default=1,
        help="with different validation sets, or different labelled ones if --val names cases",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
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
    if args.undo == (args.labelled is not None):
        parser.error("--labelled is needed, or --undo alone")
    if args.strict and args.folds != 1:
        parser.error("--strict hides labels once for all folds, so it takes one fold")

    try:
        if args.undo:
            _undo_strict(args.d)
            return
        name, cases = files.training_cases(args.d)
        raw = files.nnunet_folder("nnUNet_raw") / name
        if is_strict(raw):
            raise ValueError(
                f"Labels of {name} are hidden by --strict, so a split would leave those cases "
                f"out. First: {parser.prog} -d {args.d} --undo"
            )
        file = files.split_file(name, make_folder=args.strict)
        pattern = args.group_by or library.guess_group_pattern(cases)
        groups = library.group_cases(cases, pattern)
        print(f"{name}: {library.describe_groups(groups, pattern, guessed=not args.group_by)}")
        folds = library.make_split(
            cases, library.parse_amount(args.labelled), library.parse_amount(args.val),
            group_by=pattern, folds=args.folds, seed=args.seed,
        )  # fmt: skip
        for sentence in library.describe_pulled([*args.labelled, *args.val], groups):
            print(sentence)
        for number, fold in enumerate(folds):
            print(f"fold {number}: {library.describe_fold(fold, groups)}")
        hidden = list(folds[0]["unlabelled"])
        _warn_of_patients_in_images_un(raw, pattern, [case for f in folds for case in f["val"]])
        if args.strict:
            folds[0]["unlabelled"] = []  # those of imagesUn are unlabelled in every fold
        changed = files.require_replaceable(file, folds, args.force)
        if args.strict:
            hide_labels(raw, file.parent, hidden)
        if changed:
            backup = files.write_split(file, folds, args.force)
            print(f"Written (seed {args.seed}): {file}")
            if backup:
                print(f"The earlier split is kept in {backup}")
        else:
            print(f"Nothing to do: {file} already holds this split (seed {args.seed}).")
        files.write_group_pattern(file.parent, pattern)
        if args.strict:
            print(
                f"{len(hidden)} images moved to imagesUn, their labels to labelsUn ({parser.prog} "
                f"-d {args.d} --undo brings them back).\n"
                f"Next: nnUNetv2_plan_and_preprocess -d {args.d} -c 2d, then "
                f"nnUNetv2_plgcl_preprocess -d {args.d} -c 2d"
            )
            return
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"Next: nnUNetv2_train {args.d} 2d 0 -tr nnUNetTrainerPLGCL")


def _warn_of_patients_in_images_un(raw: Path, pattern: str, validation: Sequence[str]) -> None:
    from nnunetv2_plgcl.datasets.split import group_cases, group_matching
    from nnunetv2_plgcl.datasets.unlabelled import UNLABELLED_IMAGES

    folder = raw / UNLABELLED_IMAGES
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    both = sorted(set(group_matching(names, pattern)) & set(group_cases(validation, pattern)))
    if both:
        print(
            f"Warning: {len(both)} validation patients have images in {folder} too, {both[0]} for "
            f"one. Move those away, or name other patients with --val; a training will refuse them."
        )


def _undo_strict(dataset: str) -> None:
    from nnunetv2_plgcl.datasets import files
    from nnunetv2_plgcl.datasets.strict import restore_labels

    name = files.dataset_name(dataset)
    raw = files.nnunet_folder("nnUNet_raw") / name
    cases = restore_labels(raw, files.nnunet_folder("nnUNet_preprocessed") / name)
    print(f"{len(cases)} images and their labels are back in imagesTr and labelsTr.")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {dataset} -c 2d")


def convert(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_convert``."""
    from nnunetv2_plgcl.datasets.convert import run as library

    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_convert",
        description="Write an official download in nnU-Net's raw format. After an interruption "
        "run it again.",
    )
    parser.add_argument("dataset", choices=sorted(library.SOURCES))
    parser.add_argument("source", type=Path, help="folder of the download")
    parser.add_argument("-d", type=int, required=True, metavar="ID", help="number for nnU-Net")
    parser.add_argument(
        "--protocol", choices=[library.PAPER], help="write the paper's split, a fold each amount"
    )
    parser.add_argument(
        "--cine", action="store_true",
        help="ACDC: frames of the 4D files between the labelled ones as unlabelled images",
    )  # fmt: skip
    parser.add_argument(
        "--np", "-np", type=_positive, default=4, help="worker processes (default %(default)s)"
    )
    args = parser.parse_args(argv)

    try:
        lines = library.convert(
            args.dataset, args.source, args.d,
            protocol=args.protocol, cine=args.cine, processes=args.np,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print("\n".join(lines))


def preprocess(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_preprocess``."""
    from nnunetv2_plgcl.datasets import preprocess as library
    from nnunetv2_plgcl.datasets.files import dataset_name

    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_preprocess",
        description="Preprocess the images in imagesUn, which have no label, with the dataset's "
        "own plans. Run it after nnUNetv2_plan_and_preprocess; after an interruption run it again.",
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name")
    parser.add_argument("-c", required=True, metavar="CONFIG", nargs="+", help="configurations")
    parser.add_argument(
        "-p", "-plans_name", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s"
    )
    parser.add_argument(
        "--np", "-np", type=_positive, default=4, help="worker processes (default %(default)s)"
    )
    args = parser.parse_args(argv)

    try:
        name = dataset_name(args.d)
        for configuration in args.c:
            made, there = library.preprocess_unlabelled(name, configuration, args.p, args.np)
            print(f"{configuration}: {made} images preprocessed, {there} were there already.")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")


def check(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_check``."""
    from nnunetv2_plgcl.datasets import check as library
    from nnunetv2_plgcl.datasets.files import dataset_name, read_plans

    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_check",
        description="Find what would make a training wrong or wasteful before it starts. Exit "
        "status 1 where there is an error. Labels of unlabelled cases are not opened.",
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name")
    parser.add_argument("-c", required=True, metavar="CONFIG")
    parser.add_argument("-f", required=True, metavar="FOLD", help="number or all")
    parser.add_argument(
        "-p", "-plans_name", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s"
    )
    parser.add_argument(
        "--group-by", metavar="REGEX",
        help=r"what in a case name is the patient, e.g. 'patient\d+' (default: guessed)",
    )  # fmt: skip
    parser.add_argument(
        "--np", "-np", type=_positive, default=4, help="worker processes (default %(default)s)"
    )
    args = parser.parse_args(argv)

    try:
        plans, dataset = read_plans(dataset_name(args.d), args.p, args.c)
        fold = int(args.f) if args.f.isdecimal() else args.f
        findings = library.check_training(plans, dataset, args.c, fold, args.group_by, args.np)
        findings.append(library.estimate_memory(plans, dataset, args.c))
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    for finding in findings:
        print(f"{finding.level:8}{finding.text}")
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    print(f"{errors} errors, {warnings} warnings.")
    sys.exit(1 if errors else 0)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_evaluate``."""
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
    parser.add_argument(
        "--np", "-np", type=_positive, default=4, help="worker processes (default %(default)s)"
    )
    args = parser.parse_args(argv)
    output = args.o or args.prediction / "plgcl_summary.json"
    if output.suffix != ".json":
        parser.error(f"-o names a .json file, not {output}")
    if args.o and not output.parent.is_dir():
        parser.error(f"there is no folder {output.parent}")

    from nnunetv2_plgcl.datasets.files import read_json
    from nnunetv2_plgcl.evaluation import evaluate as library

    try:
        dataset = read_json(args.djfile)
        summary = library.evaluate_folder(
            args.reference, args.prediction, dataset, voxel=args.voxel, processes=args.np
        )
        library.write_json(summary, output)
        library.write_csv(summary, output.with_suffix(".csv"))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(library.table(summary, library.class_names(dataset)))
    print(f"Written: {output}, {output.with_suffix('.csv')}")


def compare(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_compare``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_compare",
        description="Compare trainers on the same folds: table (Markdown, CSV, LaTeX) with paired "
        "tests and intervals, and one HTML report with figures. Refuses runs whose labelled "
        "cases, validation cases, plans or iterations differ.",
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name")
    parser.add_argument("-c", required=True, metavar="CONFIG")
    parser.add_argument("-f", required=True, metavar="FOLD", type=int, nargs="+")
    parser.add_argument(
        "-tr", required=True, metavar="TRAINER", nargs="+",
        help="the first is what the others are compared with",
    )  # fmt: skip
    parser.add_argument(
        "-p", "-plans_name", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s"
    )
    parser.add_argument(
        "--test", type=Path, nargs=2, metavar=("IMAGES", "LABELS"),
        help="folders of test images and their labels (default: the validation cases)",
    )  # fmt: skip
    parser.add_argument(
        "--run", action="store_true", help="train and predict what is missing; run again to go on"
    )
    parser.add_argument(
        "--seeds", type=_positive, default=1, metavar="N",
        help="repetitions; from the second on with plans of their own, PLANS_seed1, ... "
        "(default 1)",
    )  # fmt: skip
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="options for sbatch, e.g. partition=gpu time=1-00:00:00",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=_positive, default=1, metavar="N",
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
    parser.add_argument(
        "--np", "-np", type=_positive, default=4, help="worker processes (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if len(set(args.tr)) != len(args.tr) or len(set(args.f)) != len(args.f):
        parser.error("a trainer or a fold is named twice")
    if any("=" not in option for option in args.slurm):
        parser.error("--slurm takes NAME=VALUE")
    if args.slurm and args.launcher != "slurm":
        parser.error("--slurm needs --launcher slurm")
    if args.jobs > 1 and args.launcher != "local":
        parser.error("--jobs needs --launcher local: Slurm decides how many jobs run at once")

    from nnunetv2_plgcl.evaluation.compare import Request
    from nnunetv2_plgcl.evaluation.compare import compare as run_comparison

    try:
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
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(table)
    print("Written: " + ", ".join(str(file) for file in written))


def export(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_export``."""
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

    from nnunetv2_plgcl.export import export_model

    try:
        model, archive = export_model(args.model, args.output, args.chk, args.f)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"Written: {model}\n         {archive}")
    print("To use the zip file elsewhere: nnUNetv2_install_pretrained_model_from_zip FILE")


def demo(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plgcl_demo``."""
    from nnunetv2_plgcl.demo import run_demo
    from nnunetv2_plgcl.evaluation.launch import require_device

    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plgcl_demo",
        description="Train nnU-Net and PLGCL on a generated phantom and compare them: no data and "
        "no GPU needed, about six minutes on two cores. Your own nnU-Net folders stay untouched.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("plgcl_demo"), help="default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo there")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    args = parser.parse_args(argv)

    try:
        require_device(args.device)
        run_demo(args.output, args.overwrite, args.device)
    except (ValueError, FileExistsError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")
