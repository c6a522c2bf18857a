"""Parts of a trainer's step, each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnunetv2_plgcl.contrast.guidance import of_classes
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


def parts_of(trainer: Any) -> dict[str, Callable[[], object]]:
    """Loading of a batch (in this process, or what is left of it with workers), the EMA, and what
    PLGCL adds, forward and backward."""
    parts: dict[str, Callable[[], object]] = {
        name: lambda loader=loader: next(loader) for name, loader in trainer.loaders.items()
    }
    if hasattr(trainer, "update_teacher"):
        parts["EMA"] = trainer.update_teacher
    if isinstance(trainer, nnUNetTrainerPLGCL_poster) and not trainer.guide.needs_similarity:
        parts |= _parts_of_contrast(trainer)
    return parts


def _parts_of_contrast(trainer: nnUNetTrainerPLGCL_poster) -> dict[str, Callable[[], object]]:
    images, target = trainer.labelled_batch(next(trainer.batches))
    weak, strong = trainer.unlabelled_views(like=images)
    mix = trainer.cutmix(strong)
    with trainer.autocast():
        confidence = torch.cat((trainer.label_maps(target), trainer.pseudo_label(weak)))
        trainer.student_logits(torch.cat((images, strong)))
        seen, maps = trainer.seen_by_student(images, strong)
        student = seen, [one.detach().requires_grad_() for one in maps]
        teacher = trainer.seen_by_teacher(images, weak, mix)
        windows = trainer.draw_windows(teacher, confidence, len(images))
        confidence = of_classes(windows.classes, confidence)
        with torch.no_grad():
            keys = trainer.teacher_embed(*teacher, confidence, windows)
        drawn = trainer.windows_of_anchors(windows)
        anchors = trainer.embed(*student, confidence, drawn).detach().requires_grad_()
    statistics = trainer.statistics_of_windows(confidence, len(images))
    number = windows.valid.shape[2]

    def embed() -> Tensor:
        with trainer.autocast():
            with torch.no_grad():
                trainer.teacher_embed(*teacher, confidence, windows)
            embeddings: Tensor = trainer.embed(*student, confidence, drawn)
        embeddings.backward(torch.ones_like(embeddings))
        return embeddings

    def loss() -> None:
        with trainer.autocast():
            trainer.info_nce(anchors, drawn).backward()

    return {
        "statistics": lambda: trainer.statistics_of_windows(confidence, len(images)),
        "draw": lambda: trainer.guide(statistics, number, generator=trainer.window_generator),
        "embed": embed,
        "memory": lambda: trainer.remember(keys, windows),
        "loss": loss,
    }
