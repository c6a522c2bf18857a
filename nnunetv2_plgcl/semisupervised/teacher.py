"""The mean teacher: an exponential moving average (EMA) of the student's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

TensorList = tuple[Tensor, ...] | list[Tensor]


class EMATeacher(AveragedModel):
    """EMA copy of a module; ``teacher(x)`` runs the copy, without gradient.

    The first update copies the student. From then on the decay at update t is
    ``min(decay, (1 + t) / (10 + t))``: a short run is averaged over its last tenth. The slower
    ramp 1 - 1 / (t + 1) would average it over its whole length, untrained weights included.
    Source: poster step 6, decay from the authors' code, ramp ours. Parameters are averaged once
    each, even where modules are registered under several names; buffers follow the student.

    Args:
        student: the module to follow; it is deep-copied, so hook and wrap it afterwards.
        decay: final decay per update, in [0, 1].
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        super().__init__(student, multi_avg_fn=self._move_average)
        self._final_decay = decay
        self.requires_grad_(False)
        self.eval()

    @property
    def decay(self) -> float:
        """Decay that the next update will use. Reads a counter on the host: no synchronisation."""
        updates = int(self.n_averaged)
        return min(self._final_decay, (1 + updates) / (10 + updates)) if updates else 0.0

    @torch.no_grad()
    def _move_average(
        self, teacher: TensorList, student: TensorList, _num_averaged: Tensor | int
    ) -> None:
        torch._foreach_lerp_(teacher, student, 1 - self.decay)


@torch.no_grad()
def swap_weights(a: nn.Module, b: nn.Module) -> None:
    """Exchange the parameters and buffers of two modules of equal structure, without copying.

    The ``Parameter`` objects stay where they are, so optimisers and wrappers are not disturbed.
    Calling it twice restores both. Source: ours.

    Raises:
        ValueError: the modules do not have the same parameters and buffers.
    """
    for get in (nn.Module.named_parameters, nn.Module.named_buffers):
        of_a, of_b = dict(get(a)), dict(get(b))
        if {n: t.shape for n, t in of_a.items()} != {n: t.shape for n, t in of_b.items()}:
            raise ValueError("Cannot swap weights: the two modules differ in structure.")
        for name, tensor in of_a.items():
            tensor.data, of_b[name].data = of_b[name].data, tensor.data
