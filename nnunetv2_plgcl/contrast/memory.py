"""Embeddings of the recent past, first in first out, one queue per class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist


@dataclass(frozen=True)
class Remembered:
    """Entries of a memory, all of them or a draw.

    Attributes:
        entries: (K, M, E).
        filled: (K, M) bool: which of them hold an embedding.
        weight: (K, M), how many entries of the memory each stands for; None where each stands for
            itself.
    """

    entries: Tensor
    filled: Tensor
    weight: Tensor | None = None

    def of_other_classes(self) -> Remembered:
        """For each class the entries of all classes, its own left out by the mask.

        The negatives of guides that choose positives only. Source: authors' code, where the
        other classes are the negatives.

        Returns:
            entries (K, K * M, E), a view without copies, filled and weight (K, K * M).
        """
        classes = len(self.entries)
        other = ~torch.eye(classes, dtype=torch.bool, device=self.filled.device)
        return Remembered(
            self.entries.flatten(0, 1).expand(classes, -1, -1),
            (other[:, :, None] & self.filled).flatten(1),
            None if self.weight is None else self.weight.flatten().expand(classes, -1),
        )


class ClassMemory(nn.Module):
    """A first-in-first-out queue of embeddings for each class (authors' code), as buffers.

    It moves with ``.to(device)``, lies in the state dict and never carries gradient. Under
    distributed training every rank holds the same memory. About ``num_classes * length * dim``
    numbers.

    Args:
        num_classes: K.
        length: entries per class; 4,096 in the authors' code.
        dim: E, numbers per embedding; 128 in the authors' code.
        dtype: of the entries. Half precision halves the memory; ``moments`` stays float32.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        num_classes: int,
        length: int = 4096,
        dim: int = 128,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if min(num_classes, length, dim) < 1:
            raise ValueError(
                f"num_classes, length and dim must be at least 1, got {num_classes}, {length} "
                f"and {dim}."
            )
        self._shape = (num_classes, length, dim)
        # One row beyond the queues takes what is refused, so that shapes never depend on data.
        self.register_buffer("rows", torch.zeros(num_classes * length + 1, dim, dtype=dtype))
        self.register_buffer("arrived", torch.zeros(num_classes, dtype=torch.long))
        self.rows: Tensor
        self.arrived: Tensor

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, keep: Tensor, classes: Tensor | None = None) -> None:
        """Append embeddings in the order (rank, b, n); the oldest of a full class make way.

        Of more than ``length`` at once the newest stay. Embeddings that are not finite are
        refused: one overflow in mixed precision must not outlive its step. Nothing waits for the
        GPU but under distributed training, where ranks may bring different numbers of windows
        and tell one another first.

        Rows change in place: enqueue before the loss, or after its backward pass.

        Args:
            embeddings: (B, K, N, E). All ranks must call together; B and N may differ.
            keep: (B, K, N) bool, false for what is not to be remembered.
            classes: which classes of the memory these K are, (K,) long, alike on all ranks; None
                for all.

        Raises:
            ValueError: shapes that do not fit the memory or one another.
        """
        of_all, length, dim = self._shape
        number = of_all if classes is None else len(classes)
        shape = tuple(embeddings.shape)
        if len(shape) != 4 or shape[1::2] != (number, dim) or tuple(keep.shape) != shape[:3]:
            raise ValueError(
                f"Expected embeddings (B, {number}, N, {dim}) and keep (B, {number}, N), got "
                f"{shape} and {tuple(keep.shape)}."
            )
        new = embeddings.to(self.rows.dtype).transpose(0, 1).flatten(1, 2)
        keep = keep.transpose(0, 1).flatten(1, 2)
        if dist.is_available() and dist.is_initialized():
            new, keep = _gather(new), _gather(keep)

        keep = keep & new.isfinite().all(-1)
        arrival = keep.cumsum(1)
        total = keep.sum(1, keepdim=True)
        keep = keep & (arrival > total - length)
        if classes is None:
            classes = torch.arange(of_all, device=keep.device)
        slot = classes[:, None] * length + (self.arrived[classes, None] + arrival - 1) % length
        self.rows[torch.where(keep, slot, of_all * length)] = torch.where(keep[..., None], new, 0)
        self.arrived.index_add_(0, classes, total[:, 0])

    def entries(self) -> Tensor:
        """(K, length, E), a view of the memory in no particular order, zero where not filled."""
        return self.rows[:-1].view(self._shape)

    def filled(self) -> Tensor:
        """(K, length) bool: which entries hold an embedding."""
        _, length, _ = self._shape
        return torch.arange(length, device=self.arrived.device) < self.arrived[:, None]

    def recall(
        self,
        number: int | None = None,
        generator: torch.Generator | None = None,
        classes: Tensor | None = None,
    ) -> Remembered:
        """All entries, or ``number`` of each class drawn at random.

        The filled entries of a class, in their order, are cut into ``number`` parts of equal
        length and one entry is drawn from each, so every entry is as likely as the others, and
        means and weighted sums over a draw are unbiased. An entry that fills several parts is
        drawn for each. Source: ours.

        Args:
            number: M; from ``length`` on, and for None, all entries are given as they lie.
            generator: source of randomness, on the memory's device.
            classes: (K,) long, which of the memory's; None for all.
        """
        of_all, length, _ = self._shape
        if number is None or number >= length:
            every = self.entries(), self.filled()
            return Remembered(*(x if classes is None else x[classes] for x in every))
        device = self.arrived.device
        if classes is None:
            classes = torch.arange(of_all, device=device)
        held = self.arrived[classes, None].clamp(max=length)
        place = torch.arange(number, device=device) + torch.rand(
            len(classes), number, device=device, generator=generator
        )
        # rounding up must not reach beyond the last
        index = (place * (held / number)).long().minimum((held - 1).clamp(min=0))
        index = index + classes[:, None] * length
        return Remembered(
            self.rows.index_select(0, index.flatten()).unflatten(0, index.shape),
            (held > 0).expand(-1, number),
            (held / number).expand(-1, number),
        )

    @torch.no_grad()
    def mean(self) -> Tensor:
        """(K, E) mean of the filled entries in float32, zero for a class without entries."""
        with torch.autocast(self.rows.device.type, enabled=False):
            filled = self.filled().float()
            total = self.entries().float().mul(filled[..., None]).sum(1)
            return total / filled.sum(1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (K, E) and biased covariance (K, E, E) of the filled entries, float32.

        Both are zero for a class without entries. Source: authors' code, after joint contrastive
        learning.
        """
        with torch.autocast(self.rows.device.type, enabled=False):
            mean, filled = self.mean(), self.filled().float()
            centred = (self.entries().float() - mean[:, None]) * filled[..., None]
            return mean, centred.mT @ centred / filled.sum(1).clamp(min=1)[:, None, None]


def _gather(rows: Tensor) -> Tensor:
    """Concatenate (K, M, ...) of all ranks along axis 1 in rank order, M differing by rank."""
    ranks = dist.get_world_size()
    lengths = torch.empty(ranks, dtype=torch.long, device=rows.device)
    own = torch.tensor([rows.shape[1]], device=rows.device)
    dist.all_gather_into_tensor(lengths, own)
    counts = lengths.tolist()
    padded = rows.new_zeros(rows.shape[0], max(counts), *rows.shape[2:])
    padded[:, : rows.shape[1]] = rows
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:, :n] for part, n in zip(parts, counts, strict=True)], 1)
