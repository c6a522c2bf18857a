#!/usr/bin/env python3
"""Time and memory of PLGCL's contrast against everything that it may depend on, one at a time.

Random images and features, 8 images of 96 x 96 with 4 classes, 128 anchors and a memory of 1,024
(256 of them drawn) where a row says nothing else. Medians of the CPU time of one step, forward and
backward, on one thread, and the bytes held for the backward pass and from step to step.

    python scripts/benchmark_growth.py --plot docs/growth.png > growth.md
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nnunetv2_plgcl.contrast.embedding import FeatureEmbedder, ProjectionHead
from nnunetv2_plgcl.contrast.guidance import EntropyGuide, draw_classes, of_classes
from nnunetv2_plgcl.contrast.loss import sampled_info_nce
from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.patches import window_statistics
from nnunetv2_plgcl.contrast.trainer import nnUNetTrainerContrast

WARM_UP, STEPS, DRAWS, CHANNELS = 2, 9, 256, 64


@dataclass(frozen=True)
class Size:
    """What the contrast is given; ``present`` of the classes are in the images."""

    classes: int = 4
    present: int = 4
    anchors: int = 128
    memory: int = 1024
    patch: tuple[int, ...] = (96, 96)
    images: int = 8


BASE = Size()
GROWTH = {
    "classes": [replace(BASE, classes=n, present=n) for n in (2, 4, 10, 30, 100)],
    "classes, 4 of them present": [replace(BASE, classes=n) for n in (4, 10, 30, 100)],
    "anchors": [replace(BASE, anchors=n) for n in (32, 128, 512, 2048, 4096)],
    "memory": [replace(BASE, memory=n) for n in (1, 64, 1024, 4096, 16384, 65536)],
    "patch": [replace(BASE, patch=(n, n)) for n in (48, 96, 192, 384)],
    "patch, 3D, 2 images": [replace(BASE, patch=(n, n, n), images=2) for n in (16, 32, 64)],
}


def contrast(size: Size) -> tuple[Callable[[], Tensor], list[ClassMemory]]:
    """A step up to its loss, and the memories that it fills."""
    torch.manual_seed(0)
    coarse = torch.randn(size.images, size.classes, *[6] * len(size.patch)) * 5
    coarse[:, size.present :] = -1e4
    image = torch.empty(size.images, 1, *size.patch)
    mode = "bilinear" if len(size.patch) == 2 else "trilinear"
    confidence = torch.nn.functional.interpolate(coarse, size.patch, mode=mode).softmax(1)
    cells = [edge // 4 for edge in size.patch]
    features = torch.randn(size.images, CHANNELS, *cells, requires_grad=True)
    keys = torch.randn(size.images, CHANNELS, *cells)
    embed, teacher = (FeatureEmbedder(ProjectionHead(CHANNELS)) for _ in range(2))
    memories = [ClassMemory(size.classes, size.memory) for _ in range(2)]
    contrasted = min(size.classes, nnUNetTrainerContrast.most_classes or size.classes)
    per_map = math.ceil(size.anchors / (size.images * contrasted))
    guide = EntropyGuide(balanced=True)

    def step() -> Tensor:
        edges = [max(16, edge // 4) for edge in size.patch]
        classes = draw_classes(confidence, nnUNetTrainerContrast.most_classes)
        maps = of_classes(classes, confidence)
        windows = guide(window_statistics(maps, edges), 2 * per_map)
        of_anchors = windows.first(per_map)
        anchors = embed(image, [features], maps, of_anchors)
        with torch.no_grad():
            embedded = teacher(image, [keys], maps, windows)
        for memory, side in zip(memories, (windows.positive, ~windows.positive), strict=True):
            memory.enqueue(embedded, windows.valid & side, classes)
        positives, negatives = (memory.recall(DRAWS, classes=classes) for memory in memories)
        return sampled_info_nce(
            anchors, of_anchors.valid & of_anchors.positive, positives.entries, positives.filled,
            negatives.entries, negatives.filled, 0.2, negatives.weight, size.images * per_map,
        )  # fmt: skip

    return step, memories


def measure(size: Size) -> tuple[float, float]:
    """Milliseconds of a step, MiB."""
    step, memories = contrast(size)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step().backward()
    durations = []
    for _ in range(WARM_UP + STEPS):
        before = time.process_time()
        step().backward()
        durations.append(1000 * (time.process_time() - before))
    held = sum(b.numel() * b.element_size() for memory in memories for b in memory.buffers())
    return statistics.median(durations[WARM_UP:]), (sum(saved.values()) + held) / 2**20


def plot(rows: dict[str, list[tuple[float, float, float]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 4), layout="constrained")
    for axis, column, label in zip(figure.subplots(1, 2), (1, 2), ("ms", "MiB"), strict=True):
        for name, values in rows.items():
            axis.plot([v[0] for v in values], [v[column] for v in values], "o-", label=name)
        axis.set(xscale="log", yscale="log", ylabel=f"{label} a step", xlabel="number")
    axis.legend(fontsize=7)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="draw it, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    print("| grows | to | ms a step | MiB |\n|---|---:|---:|---:|")
    for name, sizes in GROWTH.items():
        attribute = name.partition(",")[0]
        for size in sizes:
            value = getattr(size, attribute)
            number = math.prod(value) if isinstance(value, tuple) else value
            text = " x ".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}"
            milliseconds, mebibytes = measure(size)
            print(f"| {name} | {text} | {milliseconds:.1f} | {mebibytes:.1f} |", flush=True)
            rows.setdefault(name, []).append((number, milliseconds, mebibytes))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
