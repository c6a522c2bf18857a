"""What the training logs beyond nnU-Net, and its panel in progress.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger
from nnunetv2.utilities.collate_outputs import collate_outputs
from PIL import Image
from torch import distributed as dist

LOSSES = {
    "loss_supervised": "supervised (L_Sup)",
    "loss_consistency": "consistency (L_Reg)",
    "loss_contrastive": "contrastive (L_PLGCL)",
}
LARGEST_CLASS = "largest_pseudo_class"
SHARES = {
    "ema_decay": "EMA decay",
    "consistency_rampup": "ramp-up of beta",
    LARGEST_CLASS: "largest class of pseudo-labels",
}
PATCHES = "patches_per_class"
SKIPPED = "skipped_steps"  # in an epoch
LEAST_KNOWN = 0.5  # share of voxels that must not be ignored, for a collapse to be told
CLASS_SHARES = "class_shares"  # of the pseudo-labels of a step, see targets.class_shares


class ProgressLogger(LocalLogger):
    """nnU-Net's local logger with the semi-supervised series, each one value an epoch, and a
    panel of them below nnU-Net's own three in progress.png."""

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(verbose)
        for key in (*LOSSES, *SHARES, PATCHES, SKIPPED):
            self.my_fantastic_logging[key] = []

    def plot_progress_png(self, output_folder: str) -> None:
        super().plot_progress_png(output_folder)
        file = Path(output_folder) / "progress.png"
        with Image.open(file) as image:
            above = image.convert("RGB")
        below = _panel(self.my_fantastic_logging, above.width)
        whole = Image.new("RGB", (above.width, above.height + below.height), "white")
        whole.paste(above)
        whole.paste(below, (0, above.height))
        whole.save(file, compress_level=1)  # drawn anew each epoch: speed before size


def install(logger: MetaLogger) -> None:
    """Let nnU-Net's logger keep the semi-supervised series; wandb gets them through it."""
    logger.local_logger = ProgressLogger(logger.local_logger.verbose)


def log_epoch(
    logger: MetaLogger, train_outputs: list[dict], epoch: int
) -> tuple[dict[str, float], np.ndarray]:
    """Log the means over the steps of an epoch and over the ranks of a distributed training.

    Args:
        train_outputs: what ``finish_step`` returned, one a step.

    Returns:
        the mean of each loss, and of the shares of classes in pseudo-labels.
    """
    collated = collate_outputs(train_outputs)
    shares = _mean_over_ranks(collated.pop(CLASS_SHARES))
    collated[LARGEST_CLASS] = [shares[:-1].max() / shares[-1] if shares[-1] else 0.0]
    for key in (*LOSSES, *SHARES):
        logger.log(key, _mean_over_ranks(collated[key]).item(), epoch)
    logger.log(SKIPPED, float(np.sum(collated[SKIPPED])), epoch)
    logger.log(PATCHES, _mean_over_ranks(collated[PATCHES]).tolist(), epoch)
    return {key: logger.get_value(key, step=-1) for key in LOSSES}, shares


def the_only_class(shares: np.ndarray) -> int | None:
    """Index of the class that all pseudo-labels of an epoch are, if they have collapsed to one;
    with regions, to the same ones everywhere. Where most voxels are ignored, none is told.

    Args:
        shares: of all voxels of an epoch, as ``targets.class_shares``.
    """
    *classes, known = shares
    collapsed = known >= LEAST_KNOWN and np.isin(classes, (0, known)).all()
    return int(np.argmax(classes)) if collapsed else None


def _mean_over_ranks(values: list | np.ndarray) -> np.ndarray:
    mean = np.mean(values, axis=0)
    if not dist.is_initialized():
        return mean
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mean)
    return np.mean(of_ranks, axis=0)


def _panel(series: dict[str, list], width: int) -> Image.Image:
    """Draw losses, shares and patches per class over epochs, ``width`` pixels wide."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(width / 100, 18), dpi=100)
    for key, label in LOSSES.items():
        if any(series[key]):
            left.plot(series[key], label=label, linewidth=4)
    left.set(xlabel="epoch", ylabel="loss")
    left.legend(loc=(0, 1))
    for key, label in SHARES.items():
        right.plot(series[key], label=label, linewidth=4)
    right.set(xlabel="epoch", ylim=(0, 1.05), ylabel="decay, ramp-up, share")
    right.legend(loc=(0, 1))
    counts_per_class = np.array(series[PATCHES], dtype=float).T
    if counts_per_class.any():
        patches = right.twinx()
        for number, counts in enumerate(counts_per_class):
            patches.plot(counts, label=f"class {number}", linewidth=4, linestyle="dotted")
        patches.set_ylabel("patches per iteration")
        patches.legend(loc=(0.5, 1), ncol=2)
    figure.tight_layout()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    return image
