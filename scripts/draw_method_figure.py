#!/usr/bin/env python3
"""Draw the six steps of the method on one unlabelled image of a training, as the training sees it.

Loads a checkpoint of nnUNetTrainerPLGCL, takes a batch from the training's own loaders, and runs
the trainer's own pieces on it. Two-dimensional configurations only.

    python scripts/draw_method_figure.py -d 100 -c 2d -f 0 CHECKPOINT docs/method.png
"""

from __future__ import annotations

import argparse
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from nnunetv2.run.run_training import get_trainer_from_args
from torch import Tensor

from nnunetv2_plgcl.contrast.embedding import masked_crops
from nnunetv2_plgcl.contrast.patches import Windows, bernoulli_entropy
from nnunetv2_plgcl.semisupervised.mixing import CutMix

POSITIVE, NEGATIVE = "#1b9e77", "#d95f02"
SHOWN = 6  # windows of each side


def overlay(axis: Axes, image: Tensor, labels: Tensor, title: str, classes: int) -> None:
    axis.imshow(image, cmap="gray")
    colours = ListedColormap(plt.get_cmap("tab10").colors[: classes - 1])
    shown = np.ma.masked_equal(labels.numpy(), 0)
    axis.imshow(shown, cmap=colours, vmin=1, vmax=classes - 1, alpha=0.5, interpolation="nearest")
    axis.set_title(title, fontsize=11)


def draw_windows(axis: Axes, image: Tensor, windows: Windows, which: tuple[int, int]) -> None:
    axis.imshow(image, cmap="gray")
    for start, positive, valid in zip(
        windows.start[which], windows.positive[which], windows.valid[which], strict=True
    ):
        if valid:
            corner = start[1].item() - 0.5, start[0].item() - 0.5
            colour = POSITIVE if positive else NEGATIVE
            axis.add_patch(
                Rectangle(corner, windows.size[1], windows.size[0], fill=False, color=colour)
            )


def mosaic(crops: Tensor) -> Tensor:
    """(N, H, W) to one picture with SHOWN columns, white between them."""
    white = float(crops.max()) if len(crops) else 1.0
    height, width = crops.shape[1:]
    picture = torch.full((height, SHOWN * (width + 1) - 1), white)
    for column, crop in enumerate(crops[:SHOWN]):
        picture[:, column * (width + 1) : column * (width + 1) + width] = crop
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", dest="dataset", required=True)
    parser.add_argument("-c", dest="configuration", required=True)
    parser.add_argument("-f", dest="fold", type=int, default=0)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainerPLGCL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--class", dest="class_index", type=int, default=2)
    parser.add_argument("checkpoint")
    parser.add_argument("picture")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results  # the training's own folder stays as it is
        os.environ["nnUNet_n_proc_DA"] = "0"
        trainer = get_trainer_from_args(
            arguments.dataset,
            arguments.configuration,
            arguments.fold,
            arguments.trainer,
            arguments.plans,
            device=torch.device("cpu"),
        )
        trainer.initialize()
        trainer.load_checkpoint(arguments.checkpoint)
        trainer.on_train_start()
        torch.manual_seed(arguments.seed)
        trainer.window_generator.manual_seed(arguments.seed)
        np.random.seed(arguments.seed)
        images, target = trainer.labelled_batch(next(trainer.dataloader_train))
        weak, strong = trainer.unlabelled_views(like=images)
        with torch.no_grad():
            pseudo_label = trainer.pseudo_label(weak)
            teacher = trainer.seen_by_teacher(images, weak, CutMix(weak, probability=0))
            confidence = torch.cat((trainer.label_maps(target), pseudo_label))
            windows = trainer.draw_windows(teacher, confidence)
            student = trainer.student_logits(strong)[0].argmax(1)

    # the unlabelled image in which the class has most positives
    k, labelled, classes = arguments.class_index, len(images), confidence.shape[1]
    positives = (windows.valid & windows.positive)[labelled:, k].sum(-1)
    number = int(positives.argmax())
    which = labelled + number, k
    crops = masked_crops(torch.cat((images, weak)), confidence, windows)[which][:, 0]
    valid, positive = windows.valid[which], windows.positive[which]
    name = list(trainer.dataset_json["labels"])[k]

    figure, axes = plt.subplots(2, 4, figsize=(13, 7), layout="constrained")
    top, bottom = axes
    overlay(
        top[0],
        weak[number, 0],
        pseudo_label[number].argmax(0),
        "1  teacher's pseudo-label, weak view",
        classes,
    )
    entropy = top[1].imshow(
        bernoulli_entropy(pseudo_label[number, k]), cmap="magma", vmin=0, vmax=1
    )
    top[1].set_title(f"entropy of the {name} map (bits)", fontsize=11)
    figure.colorbar(entropy, ax=top[1], shrink=0.7)
    draw_windows(top[2], weak[number, 0], windows, which)
    top[2].set_title(f"2  {name} windows: positive, negative", fontsize=11)
    top[3].set_title("3  embedded: window x mask\nabove positives, below negatives", fontsize=11)
    both = [mosaic(crops[valid & side]) for side in (positive, ~positive)]
    gap = torch.full((4, both[0].shape[1]), float(crops.max()))
    top[3].imshow(torch.cat((both[0], gap, both[1])), cmap="gray")
    bottom[0].imshow(strong[number, 0], cmap="gray")
    bottom[0].set_title("strong view of the same patch", fontsize=11)
    overlay(
        bottom[1],
        strong[number, 0],
        student[number],
        "4  student, strong view: agrees with 1",
        classes,
    )
    overlay(
        bottom[2],
        images[-1, 0],
        target[0][-1, 0].clamp(min=0).long(),
        "5  labelled patch: supervision",
        classes,
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bottom[3].axis("off")
    bottom[3].text(
        0.5,
        0.5,
        "6  total loss\n\n"
        r"$L^{Sup} + \beta\,L^{Reg} + \gamma\,L^{PLGCL}$"
        "\n\nthen the teacher moves\ntowards the student (EMA)",
        ha="center",
        va="center",
        fontsize=14,
    )
    figure.savefig(arguments.picture, dpi=80)


if __name__ == "__main__":
    main()
