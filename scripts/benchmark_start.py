#!/usr/bin/env python3
"""Time from the start of a training's process to the end of its first step, trainers in turns.

Each training is a process of its own, as nnUNetv2_train starts it, in an empty folder of results,
and ended after that step. The first turn warms caches and does not count.

    python scripts/benchmark_start.py --demo
    python scripts/benchmark_start.py -d 27 -c 2d -f 0 -device cuda
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step.arguments import add_training, parse

FIRST_STEP = """
import os
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

begin_epoch = nnUNetTrainer.on_train_epoch_start

def and_end_after_its_first_step(trainer):
    step = trainer.train_step

    def first_step(batch):
        step(batch)
        print("THE FIRST STEP IS DONE", flush=True)
        os.killpg(os.getpgid(0), 9)  # with the workers

    trainer.train_step = first_step
    begin_epoch(trainer)

nnUNetTrainer.on_train_epoch_start = and_end_after_its_first_step

if __name__ == "__main__":
    run_training_entry()
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_training(parser)
    parser.add_argument("--turns", type=int, default=5)
    return parse(parser)


def seconds_to_first_step(arguments: argparse.Namespace, trainer: str, folder: Path) -> float:
    """Start a training, wait until its first step is done.

    Raises:
        RuntimeError: it ended before.
    """
    script = folder / "first_step.py"  # a file, since workers import it
    script.write_text(FIRST_STEP)
    command = [
        sys.executable, str(script), arguments.dataset, arguments.configuration,
        str(arguments.fold),
        "-tr", trainer, "-p", arguments.plans, "-device", arguments.device,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as results:
        before = time.perf_counter()
        child = subprocess.run(
            command,
            env={**os.environ, "nnUNet_results": results},
            start_new_session=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - before
    if "THE FIRST STEP IS DONE" not in child.stdout:
        raise RuntimeError(f"{trainer} made no step:\n{child.stdout}{child.stderr}")
    return seconds


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.demo:
            from step.demo import prepare_demo

            prepare_demo(folder)
        seconds: dict[str, list[float]] = {trainer: [] for trainer in arguments.trainers}
        for turn in range(1 + arguments.turns):
            for trainer, of_trainer in seconds.items():
                try:
                    passed = seconds_to_first_step(arguments, trainer, folder)
                except RuntimeError as error:
                    sys.exit(str(error))
                if turn:
                    of_trainer.append(passed)
    first = next(iter(seconds))
    print(f"| trainer | seconds to the first step | more than {first} |\n|---|---:|---:|")
    for trainer, of_trainer in seconds.items():
        more = statistics.median(a - b for a, b in zip(of_trainer, seconds[first], strict=True))
        print(f"| {trainer} | {statistics.median(of_trainer):.1f} | {more:+.1f} |")


if __name__ == "__main__":
    main()
