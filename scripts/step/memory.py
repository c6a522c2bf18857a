"""Bytes that a training holds: for the backward pass, counted, and from step to step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def bytes_held(trainer: Any) -> dict[str, int]:
    """Of one step: what autograd saves, weights, buffers and gradients, and optimiser's state.

    On a GPU also "peak", the most that was allocated at once; it is all that counts then.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    state = _state(trainer)
    own = {tensor.untyped_storage().data_ptr() for tensor in state}
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - _bytes(state)  # other trainers in this process
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.train_step(next(trainer.batches))
    if on_gpu:
        return {"peak": torch.cuda.max_memory_allocated() - others}
    backward = sum(number for place, number in saved.items() if place not in own)
    return {"for the backward pass": backward, "state": _bytes(_state(trainer))}


def _state(trainer: Any) -> list[Tensor]:
    modules = [value for value in vars(trainer).values() if isinstance(value, nn.Module)]
    weights = [p for module in modules for p in module.parameters()]
    gradients = [p.grad for p in weights if p.grad is not None]
    buffers = [b for module in modules for b in module.buffers()]
    of_optimiser = [
        value
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return [*weights, *gradients, *buffers, *of_optimiser]


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
