#!/usr/bin/env python3
"""Compare trainers on a dataset with few labels: same plans, labelled cases, iterations, weights of
the last iteration.

    python scripts/benchmark.py acdc --data FOLDER --labelled 3 7 --seeds 3 --jobs 2 \\
        --trainers nnUNetTrainer nnUNetTrainerMeanTeacher nnUNetTrainerPLGCL

Plans, preprocesses, trains and evaluates what is missing: run it again to go on after an
interruption, or to add trainers, seeds or other numbers of labelled patients. The package must be
installed; no variable of nnU-Net's is needed. Every training lowers nnU-Net's learning rate in 50
steps, however long it is.

WORK/results.csv has a row for each training of every call: scores before and after nnU-Net's
postprocessing, time and memory, commit and device. OUTPUT has the tables of this call, with seeds
as repetitions and paired tests against the first trainer, and the scores of every volume.
Distances are in voxels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from bench.datasets import DATASETS, GPU_ITERATIONS

STEPS = 50  # of the learning rate
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerMeanTeacher", "nnUNetTrainerPLGCL")
ENVIRONMENT_OF_CPU_TRAININGS = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow the training beside them many times over
    "nnUNet_n_proc_DA": "0",  # loading is a tenth of a step: no workers
    "nnUNet_def_n_proc": "2",
}


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dataset", choices=DATASETS)
    add("--data", type=Path, metavar="FOLDER",
        help="the dataset in nnU-Net's raw layout with a split.json (lists of cases: train, val, "
        "and labelled by number of patients), or an archive that --pack wrote")  # fmt: skip
    add("--work", type=Path, default=Path("benchmark"), metavar="FOLDER",
        help="for plans, trainings and rows (default: %(default)s)")  # fmt: skip
    add("--labelled", nargs="+", metavar="N",
        help="numbers of labelled patients in split.json; all: every training patient, the upper "
        "line of nnUNetTrainer")  # fmt: skip
    add("--split", choices=("val", "dev"), default="val",
        help="val: split.json's validation cases, for the table; dev: a split of its own inside "
        "the training patients, for choosing settings (default: %(default)s)")  # fmt: skip
    add("--trainers", nargs="+", default=TRAINERS, metavar="TRAINER",
        help="nnU-Net's, ours or from nnUNet_extTrainer; the first is what the others are compared "
        "with (default: " + " ".join(TRAINERS) + ")")  # fmt: skip
    add("--seeds", type=number_from(1), default=1, metavar="N", help="repetitions (default: 1)")
    add("--first-seed", type=number_from(0), default=0, metavar="SEED",
        help="of the first repetition, the others count on from it: for further repetitions on "
        "another machine (default: 0)")  # fmt: skip
    add("--iterations", type=iterations, metavar="N",
        help=f"a multiple of {STEPS} (default: the configuration's, docs/bench.md)")  # fmt: skip
    add("--jobs", type=number_from(1), default=1, metavar="N",
        help="trainings side by side; on a CPU best as many as cores (default: 1)")  # fmt: skip
    add("-device", choices=("cpu", "cuda", "mps"), default="cpu", help="default: %(default)s")
    add("-c", dest="configuration", metavar="CONFIG",
        help="nnU-Net's own or a small one for a CPU: " + "; ".join(
            f"{name}: {', '.join([*dataset.cpu, dataset.base])}"
            for name, dataset in DATASETS.items()
        ) + " (default: on a CPU the first, else the last)")  # fmt: skip
    add("--settings", type=json.loads, default={}, metavar="JSON",
        help='under "plgcl" in the plans, e.g. \'{"ema_decay": 0.99}\'')  # fmt: skip
    add("--postprocessing", action=argparse.BooleanOptionalAction, default=True,
        help="evaluate after nnU-Net's postprocessing too (default: yes)")  # fmt: skip
    add("--test", nargs=2, type=Path, metavar=("IMAGES", "LABELS"),
        help="evaluate finished trainings on these cases; nothing is trained")  # fmt: skip
    add("-o", dest="output", type=Path, metavar="OUTPUT",
        help="folder for this call's tables (default: WORK/DATASET/tables)")  # fmt: skip
    add("--np", dest="processes", type=number_from(1), default=2, metavar="N",
        help="worker processes of preprocessing and evaluation (default: %(default)s)")  # fmt: skip
    add("--pack", type=Path, metavar="PACKED",
        help="write data and committed checkout into this folder, for a machine that reaches "
        "neither, and stop; there: python PACKED/checkout/scripts/benchmark.py DATASET --data "
        "PACKED/DATASET.tar.xz ...")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.data is None:
        parser.error("--data FOLDER is missing")
    if arguments.labelled is None and not arguments.pack:
        parser.error("--labelled N is missing")
    if not isinstance(arguments.settings, dict):
        parser.error(f"--settings are names and values in JSON, not {arguments.settings}")
    if len(set(arguments.trainers)) < len(arguments.trainers):
        parser.error("a trainer is named twice")
    dataset = DATASETS[arguments.dataset]
    if arguments.configuration is None:
        on_cpu = arguments.device == "cpu"
        arguments.configuration = next(iter(dataset.cpu)) if on_cpu else dataset.base
    if arguments.iterations is None:
        small = dataset.cpu.get(arguments.configuration)
        arguments.iterations = small.iterations if small else GPU_ITERATIONS
    return arguments


def number_from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"not a number from {least} on: {text}")
        return int(text)

    return number


def iterations(text: str) -> int:
    if not text.isdecimal() or int(text) < 1 or int(text) % STEPS:
        raise argparse.ArgumentTypeError(f"not a multiple of {STEPS}: {text}")
    return int(text)


def set_environment(arguments: argparse.Namespace) -> Path:
    """What nnU-Net and PyTorch read when they are imported.

    Returns:
        The folder of this dataset.
    """
    work = (arguments.work / arguments.dataset).resolve()
    trainers = str(Path(__file__).resolve().parent / "bench" / "trainers")
    others = os.environ.get("nnUNet_extTrainer")
    os.environ |= {
        "nnUNet_raw": str(work / "raw"),
        "nnUNet_preprocessed": str(work / "preprocessed"),
        # nnU-Net's names know no iterations
        "nnUNet_results": str(work / f"results_{arguments.iterations}"),
        "nnUNet_extTrainer": os.pathsep.join([trainers, *([others] if others else [])]),
        "PLGCL_BENCHMARK_ITERATIONS": str(arguments.iterations),
    }
    if arguments.device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        for name, value in {"OMP_NUM_THREADS": threads, **ENVIRONMENT_OF_CPU_TRAININGS}.items():
            os.environ.setdefault(name, str(value))
    return work


def benchmark(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError: what does not fit, before anything is trained.
        RuntimeError: a trainer that nnU-Net does not find; trainings that failed.
    """
    work = set_environment(arguments)
    from bench import prepare, scores
    from bench.pack import unpack
    from bench.trainings import SUFFIX, Training, complete
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_plgcl.evaluation.launch import require_device, write_plans_copy
    from nnunetv2_plgcl.evaluation.runs import Run, require_finished
    from nnunetv2_plgcl.settings import PLANS_KEY, Settings, read_settings
    from nnunetv2_plgcl.trainers import known_settings

    require_device(arguments.device)
    for name in arguments.trainers:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = recursive_find_trainer_class_by_name(name + SUFFIX)
        its_settings = getattr(trainer, "settings_class", Settings)
        fixed = getattr(trainer, "fixed_config", None)
        read_settings(its_settings, {PLANS_KEY: arguments.settings}, fixed, known_settings)
    dataset, data = DATASETS[arguments.dataset], arguments.data
    if data.is_file():
        data = unpack(data, work / "data")
    folds = prepare.make_folds(prepare.require_raw(data), dataset.patient, dataset.copies)
    numbers = {fold.labelled: n for n, fold in enumerate(folds) if fold.split == arguments.split}
    unknown = [number for number in arguments.labelled if number not in numbers]
    if unknown:
        raise ValueError(f"--labelled is one of {', '.join(numbers)}, not {unknown[0]}.")
    for name in ("raw", "preprocessed", f"results_{arguments.iterations}"):
        (work / name).mkdir(parents=True, exist_ok=True)
    without_workers = os.environ.pop("nnUNet_n_proc_DA", None)  # the planner crashes under 0
    prepare.prepare(data, dataset, arguments.configuration, folds, arguments.processes)
    if without_workers is not None:
        os.environ["nnUNet_n_proc_DA"] = without_workers

    plans = prepare.settings_name(arguments.settings)
    trainings = [
        Training(
            Run(dataset.folder, name + SUFFIX, plans, arguments.configuration, numbers[n], seed),
            folds[numbers[n]], arguments.dataset, arguments.settings, arguments.iterations,
            tuple(arguments.test) if arguments.test else None,
        )
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for n in arguments.labelled
        for name in arguments.trainers
    ]  # fmt: skip
    if arguments.test:
        require_finished([training.run for training in trainings])
    for run in {training.run.plans_name: training.run for training in trainings}.values():
        changes = {**arguments.settings, **({"seed": run.seed} if run.seed else {})}
        if changes:
            write_plans_copy(run.dataset, prepare.PLANS, run.plans_name, run.configuration, changes)

    def evaluate(training: Training) -> None:
        if not scores.is_evaluated(training, arguments.postprocessing):
            scores.evaluate(training, arguments.postprocessing, arguments.processes)
            scores.collect(arguments.work)

    complete(
        trainings, arguments.device, arguments.jobs, work / f"logs_{arguments.iterations}", evaluate
    )
    report(trainings, arguments, arguments.output or work / "tables")


def report(trainings: list, arguments: argparse.Namespace, output: Path) -> None:
    """Write and print the tables of this call, where there are published numbers beside them."""
    import pandas as pd
    from bench import scores
    from beside_paper import PAPER, beside

    from nnunetv2_plgcl.evaluation.tables import to_markdown

    paper = pd.read_csv(PAPER)
    paper = paper[paper["dataset"] == arguments.dataset]
    for file in scores.write_tables(trainings, arguments.postprocessing, output):
        print(f"\n{file.parent}\n\n{(file.parent / 'table.md').read_text()}")
        if len(paper):
            text = to_markdown(beside(pd.read_csv(file), paper))
            (file.parent / "beside_paper.md").write_text(text)
            print(f"The paper's numbers are of its 20 test patients.\n\n{text}")
    print(f"Written: {output}, {scores.collect(arguments.work)}")


def main() -> None:
    arguments = read_arguments()
    try:
        if arguments.pack:
            from bench import pack, prepare

            prepare.require_raw(arguments.data)
            for path in pack.pack(arguments.data, arguments.dataset, arguments.pack):
                print(f"Written: {path}")
        else:
            benchmark(arguments)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        sys.exit(f"benchmark.py: {error}")


if __name__ == "__main__":
    main()
