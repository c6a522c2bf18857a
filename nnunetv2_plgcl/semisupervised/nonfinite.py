"""Steps whose loss or gradient is not finite: counted, and the cases of their batches named.

Without a gradient scaler one such step ends the training before it is taken. With one, nnU-Net's
mixed precision on a GPU, it is skipped and the scale is halved: a few in the beginning are how the
scaler finds its scale, but a case of NaN values would go on for ever, and halve away what is
learnt. Source: ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor

IN_A_ROW_ALLOWED = 20  # steps that the scaler skips
SMALLEST_SCALE = 1.0  # of the scaler; it begins with 65,536


class SkippedSteps:
    """Counts steps that were not taken."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._batches = 0
        self._of_cases: Counter[str] = Counter()

    def taken(self) -> None:
        """A step was taken."""
        self._in_a_row = 0

    def skipped(self, cases: Collection[str]) -> None:
        """A step was not. ``cases`` were in its batch."""
        self._in_a_row += 1
        self._batches += 1
        self._of_cases.update(set(cases))

    def too_many(self, scalers: Collection[torch.amp.GradScaler]) -> bool:
        """Whether the training has to end. ``scalers`` are those of its optimisers."""
        if not scalers or self._in_a_row > IN_A_ROW_ALLOWED:
            return self._in_a_row > 0
        smallest = min(scaler.get_scale() for scaler in scalers)
        return self._in_a_row > 0 and smallest < SMALLEST_SCALE

    def suspects(self, shown: int = 8) -> str:
        """Cases that were in most of the batches of skipped steps, the most frequent first."""
        number = f" of {self._batches}" if self._batches > 1 else ""
        named = [
            f"{case} ({times}{number})" if number else case
            for case, times in self._of_cases.most_common(shown)
        ]
        more = len(self._of_cases) - len(named)
        return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def gradient_norm(
    norm: Tensor, optimizer: torch.optim.Optimizer, network: torch.nn.Module
) -> Tensor:
    """Norm of all gradients of an optimiser, from that of the network's, which is known.

    A method's own parameters, such as a projection head's, are not clipped, but can overflow.

    Args:
        norm: of the network's gradients, a scalar on the device.
    """
    of_network = {id(parameter) for parameter in network.parameters()}
    others = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None and id(parameter) not in of_network
    ]
    norms = torch._foreach_norm(others) if others else ()
    return torch.linalg.vector_norm(torch.stack([norm, *(n.to(norm) for n in norms)]))
