#!/usr/bin/env python3
"""Our surface distances against MedPy's, on the same masks in one go.

Takes the labels of a folder and each label's mask a few voxels aside, and a CT-sized volume of
512 x 512 x 100 with two organs of different size. Prints seconds and the ratio; the values of both
agree (tests/evaluation/test_metrics.py). Needs MedPy: pip install medpy

    python scripts/benchmark_evaluate.py LABELS_FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from medpy.metric import binary as medpy

from nnunetv2_plgcl.evaluation.metrics import surface_distances

REPEATS = 3


def fastest(work: Callable[[], object]) -> float:
    durations = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


def ours(prediction: np.ndarray, reference: np.ndarray, spacing: tuple) -> None:
    found = surface_distances(prediction, reference, spacing)
    found.hd95(), found.assd(), found.asd()


def theirs(prediction: np.ndarray, reference: np.ndarray, spacing: tuple) -> None:
    for metric in (medpy.hd95, medpy.assd, medpy.asd):
        metric(prediction, reference, voxelspacing=spacing)


def ball(shape: tuple[int, ...], radius: float) -> np.ndarray:
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum((axis - n / 2) ** 2 for axis, n in zip(axes, shape, strict=True)) < radius**2


def report(name: str, prediction: np.ndarray, reference: np.ndarray, spacing: tuple) -> None:
    one = fastest(lambda: ours(prediction, reference, spacing))
    other = fastest(lambda: theirs(prediction, reference, spacing))
    print(f"| {name} | {one:.3f} | {other:.3f} | {other / one:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with label files *.nii.gz")
    parser.add_argument("--cases", type=int, default=5)
    arguments = parser.parse_args()
    print("| masks | ours (s) | MedPy (s) | times faster |")
    print("|---|---|---|---|")
    for file in sorted(arguments.folder.glob("*.nii.gz"))[: arguments.cases]:
        image = sitk.ReadImage(str(file))
        labels, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
        for label in np.unique(labels)[1:]:
            mask = labels == label
            report(f"{file.name}, {label}", np.roll(mask, 2, -1), mask, spacing)
    for radius in (15, 45):
        mask = ball((100, 512, 512), radius)
        report(f"100 x 512 x 512, radius {radius}", np.roll(mask, 3, -1), mask, (3.0, 0.8, 0.8))


if __name__ == "__main__":
    main()
