"""What a training needs beyond nnU-Net's: memory of the GPU, space on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunetv2_plgcl.datasets.check.finding import Finding


def estimate_memory(trainer: Any) -> Finding:
    """What a trainer adds to the GPU memory that nnU-Net planned, and the size of its checkpoints;
    a warning where the disk has less left.

    Args:
        trainer: initialised; ours or nnU-Net's.
    """
    from nnunetv2 import paths

    network = _bytes(trainer.network.state_dict())
    state = _bytes(trainer.training_state()) if hasattr(trainer, "training_state") else 0
    momentum = _bytes([group["params"] for group in trainer.optimizer.param_groups])
    checkpoints = 3 * (network + momentum + state)  # final, best and latest
    text = "GPU memory as nnU-Net planned it."
    if state:  # with the student in it
        text = (
            f"{text[:-1]}, plus at least {(state - network) / 2**20:.0f} MiB that "
            f"{type(trainer).__name__} keeps beside the network, and the activations of further "
            f"passes, if it makes some (docs/methods.md)."
        )
    text = f"{text} Checkpoints up to {checkpoints / 2**20:.0f} MiB."
    if paths.nnUNet_results.is_set() and Path(paths.nnUNet_results).is_dir():
        free = shutil.disk_usage(paths.nnUNet_results).free
        if free < checkpoints:
            return Finding("warning", f"{text} Only {free / 2**20:.0f} MiB are free there.")
    return Finding("note", text)


def _bytes(content: Any) -> int:
    """Of all tensors in it."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        return sum(map(_bytes, content.values()))
    return sum(map(_bytes, content)) if isinstance(content, (list, tuple)) else 0
