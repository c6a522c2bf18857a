#!/usr/bin/env python3
"""Time the training step of trainers against the least that their networks' passes take.

All in one process and in turns, so that a machine that others use slows both sides alike; medians
of the ratios of each turn. Times are CPU time where one thread computes, wall time where several
do, and CUDA events on a GPU. Batches are loaded beforehand; loading is a part of its own.

The floor of a trainer holds every pass of a network over whole patches that one of its steps makes
(the student's forward and backward, the teacher's forward, ...), made again from the bare modules,
and the moving average of the weights as one operation. Losses, optimiser and everything else are
overhead, as are passes over crops. Passes are listed, so that one too many would be seen.

    python scripts/benchmark_step.py --demo --json step.json
    python scripts/benchmark_step.py -d 27 -c 2d -f 0 -device cuda --compile
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from step.arguments import add_training, parse
from step.floor import Floor
from step.memory import bytes_held
from step.parts import parts_of

CONTRAST = ("statistics", "draw", "embed", "memory", "loss")  # parts
WARM_UP, EPOCH = 3, 20  # turns, iterations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_training(parser)
    parser.add_argument("--compile", action="store_true", help="trainers and floors, on CUDA")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on a CPU; 0 for all")
    parser.add_argument("--workers", type=int, default=0, help="nnU-Net's, that load batches")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--trace", type=Path, help="profile the last trainer, for chrome://tracing")
    arguments = parse(parser)
    if arguments.compile and arguments.device == "cpu":
        parser.error("nnU-Net compiles nothing on a CPU: --compile needs -device cuda")
    if "nnUNetTrainer" not in arguments.trainers:
        arguments.trainers = ["nnUNetTrainer", *arguments.trainers]
    return arguments


def start(name: str, arguments: argparse.Namespace, compiled: bool) -> Any:
    """A trainer in its second stage, with fixed batches in place of its loaders.

    Raises:
        ValueError: there is no such trainer.
    """
    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ["nnUNet_compile"] = "t" if compiled else "f"
    device = torch.device(arguments.device)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = get_trainer_from_args(
            arguments.dataset, arguments.configuration, arguments.fold, name, arguments.plans,
            device=device,
        )  # fmt: skip
        trainer.num_epochs, trainer.num_iterations_per_epoch = 2, EPOCH
        trainer._check_data = lambda: None  # once before a training, and no part of a step
        trainer.on_train_start()
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
    trainer.batches = itertools.cycle([next(trainer.dataloader_train) for _ in range(2)])
    trainer.loaders = {"labelled batch": trainer.dataloader_train}
    unlabelled = getattr(trainer, "dataloader_unlabelled", None)
    if unlabelled is not None:
        trainer.loaders["unlabelled batch"] = unlabelled
        trainer.dataloader_unlabelled = itertools.cycle([next(unlabelled) for _ in range(2)])
    return trainer


def stopwatch(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """What gives the milliseconds that a call takes."""

    def on_cpu(call: Callable[[], object]) -> float:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        before = clock()
        call()
        return 1000 * (clock() - before)

    def on_cuda(call: Callable[[], object]) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last)

    return on_cuda if device.type == "cuda" else on_cpu


def in_turns(
    calls: dict[str, Callable[[], object]], device: torch.device, turns: int
) -> dict[str, list[float]]:
    """Milliseconds of each call in each turn, without the first turns."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    watch = stopwatch(device)
    for turn in range(WARM_UP + turns):
        for name, call in calls.items():
            duration = watch(call)
            if turn >= WARM_UP:
                seen[name].append(duration)
    return seen


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class TimedLoader:
    """Serves a loader's batches and remembers the seconds spent waiting for them."""

    def __init__(self, loader: Iterator[Any]) -> None:
        self.loader, self.seconds = loader, 0.0

    def __next__(self) -> Any:
        before = time.perf_counter()
        batch = next(self.loader)
        self.seconds += time.perf_counter() - before
        return batch


def share_waiting(trainer: Any) -> float:
    """Share of an epoch's wall time in which the trainer waits for batches."""
    loaders = {name: TimedLoader(loader) for name, loader in trainer.loaders.items()}
    fixed = getattr(trainer, "dataloader_unlabelled", None)
    trainer.dataloader_unlabelled = loaders.get("unlabelled batch")
    before = time.perf_counter()
    for _ in range(EPOCH):
        trainer.train_step(next(loaders["labelled batch"]))
    total = time.perf_counter() - before
    trainer.dataloader_unlabelled = fixed
    return sum(loader.seconds for loader in loaders.values()) / total


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to the JSON file."""
    device = torch.device(arguments.device)
    trainers, floors = {}, {}
    for name in arguments.trainers:
        bare = start(name, arguments, compiled=False)
        floors[name] = Floor(bare, arguments.compile)
        trainers[name] = start(name, arguments, compiled=True) if arguments.compile else bare
    calls: dict[str, Callable[[], object]] = {}
    for name, trainer in trainers.items():
        calls[f"floor of {name}"] = floors[name]
        calls[name] = lambda trainer=trainer: trainer.train_step(next(trainer.batches))
    seen = in_turns(calls, device, arguments.turns)
    ratios = {f"{n}/floor": median_ratio(seen[n], seen[f"floor of {n}"]) for n in trainers}
    ratios |= {
        f"{name}/nnUNetTrainer": median_ratio(seen[name], seen["nnUNetTrainer"])
        for name in trainers
        if name != "nnUNetTrainer"
    }
    parts, shares, waiting = {}, {}, {}
    for name, trainer in trainers.items():
        times = in_turns(parts_of(trainer), device, arguments.turns)
        parts[name] = {part: statistics.median(of_part) for part, of_part in times.items()}
        floor = statistics.median(seen[f"floor of {name}"])
        groups = {"contrast": CONTRAST, "EMA": ("EMA",)}
        shares[name] = {
            group: sum(parts[name][part] for part in of_group) / floor
            for group, of_group in groups.items()
            if parts[name].keys() >= {*of_group}
        }
        waiting[name] = share_waiting(trainer)
    held = {name: bytes_held(trainer) for name, trainer in trainers.items()}
    of_nnunet = sum(held["nnUNetTrainer"].values())
    if arguments.trace:
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                calls[arguments.trainers[-1]]()
        profiler.export_chrome_trace(str(arguments.trace))
    for trainer in trainers.values():
        getattr(trainer, "_finish_loaders", lambda: None)()
    return {
        "ratios": ratios,
        "milliseconds": {name: statistics.median(of_call) for name, of_call in seen.items()},
        "passes of the floor": {name: floor.passes for name, floor in floors.items()},
        "milliseconds of parts": parts,
        "parts/floor": shares,
        "share of an epoch waiting for batches": waiting,
        "bytes": held,
        "bytes/nnUNetTrainer": {name: sum(of.values()) / of_nnunet for name, of in held.items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else arguments.device,
        "threads": torch.get_num_threads(),
        "workers": arguments.workers,
        "compiled": arguments.compile,
        "turns": arguments.turns,
    }


def as_table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = ["| trainer | ms a step | / floor | / nnUNetTrainer | contrast / floor | EMA / floor "
             "| memory / nnUNetTrainer | waiting for batches |", "|---|" + "---:|" * 7]  # fmt: skip
    for name, shares in result["parts/floor"].items():
        per_cent = [f"{100 * shares[p]:.1f} %" if p in shares else "" for p in ("contrast", "EMA")]
        lines.append(
            f"| {name} | {result['milliseconds'][name]:.1f} "
            f"| {result['ratios'][f'{name}/floor']:.3f} "
            f"| {result['ratios'].get(f'{name}/nnUNetTrainer', 1):.3f} "
            f"| {' | '.join(per_cent)} | {result['bytes/nnUNetTrainer'][name]:.3f} "
            f"| {100 * result['share of an epoch waiting for batches'][name]:.0f} % |"
        )
    for name, passes in result["passes of the floor"].items():
        lines.append(f"\nFloor of {name}: {'; '.join(passes)}.")
    for name, parts in result["milliseconds of parts"].items():
        each = ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in parts.items())
        lines.append(f"\nParts of {name} (ms): {each}.")
    return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.demo:
            from step.demo import prepare_demo

            prepare_demo(Path(folder))
        os.environ["nnUNet_results"] = folder  # of trainings that end with this process
        os.environ["nnUNet_n_proc_DA"] = str(arguments.workers)
        try:
            result = measure(arguments)
        except ValueError as error:
            sys.exit(str(error))
    print(as_table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
