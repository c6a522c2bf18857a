"""Channel dropout on the encoder's feature maps, for chosen passes only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Masks = list[Tensor]  # one a stage of the encoder, the finest first: (B, C, 1, ...)


class FeatureDropout:
    """Multiplies every output of ``network.encoder``, skips and bottleneck, by masks while it is
    switched on. The decoder then works on what is left.

    A forward hook: the network keeps its modules, and passes outside ``on`` are its own to the bit.
    Creating one makes ``torch.compile`` heed hooks in this process, and forget what it compiled
    before. Copy the network first: a deep copy has a dropout that nobody can switch on.
    Masks are drawn on the device by torch's generator, outside the network; nothing waits for a
    GPU. Source: UniMatch (Yang et al., 2023) and UniMatch V2 (2025).

    Args:
        network: a U-Net whose ``encoder`` returns its feature maps as a list and has their
            ``output_channels``; bare, not wrapped.

    Raises:
        NotImplementedError: the network has no such encoder.
    """

    def __init__(self, network: nn.Module) -> None:
        encoder = getattr(network, "encoder", None)
        channels = getattr(encoder, "output_channels", None)
        if not isinstance(encoder, nn.Module) or not isinstance(channels, Sequence):
            raise NotImplementedError(
                f"{type(network).__name__} has no encoder whose feature maps could be dropped. "
                f"Needed is a module 'encoder' that returns the list of its feature maps and has "
                f"their 'output_channels', as PlainConvUNet and ResidualEncoderUNet."
            )
        # By default torch.compile does not tell networks apart by their hooks: a graph of another
        # one in this process, without this hook, would serve this one.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()  # forget graphs from before
        self._channels = tuple(channels)
        self._masks: Masks | None = None
        encoder.register_forward_hook(self._drop)

    def masks(self, like: Tensor, probability: float = 0.5) -> Masks:
        """Channels are 0 with this probability, the others are scaled so that the mean stays.

        Args:
            like: (B, C, *spatial), for number, axes and device.
            probability: in [0, 1).
        """
        return [(m >= probability).to(m.dtype) / (1 - probability) for m in self._noise(like)]

    def complementary_masks(self, like: Tensor) -> tuple[Masks, Masks]:
        """Two sets: where a channel is 0 in the one it is 2 in the other; half of the samples, the
        same in both, are left whole (UniMatch V2).

        Args:
            like: (B, C, *spatial), for number, axes and device.
        """
        order = torch.rand(len(like), device=like.device).argsort()
        whole = (order < len(like) // 2).view(-1, *[1] * (like.ndim - 1))
        first = [torch.where(whole, 1, mask) for mask in self.masks(like)]
        return first, [2 - mask for mask in first]

    @contextmanager
    def on(self, *masks: Masks, whole: int = 0) -> Iterator[None]:
        """Inside, batches of the network are: ``whole`` samples as they are, then those of each set
        of masks."""
        joined = [torch.cat(stage) for stage in zip(*masks, strict=True)]
        self._masks = [torch.cat((m.new_ones(whole, *m.shape[1:]), m)) for m in joined]
        try:
            yield
        finally:
            self._masks = None

    def _noise(self, like: Tensor) -> Iterator[Tensor]:
        for channels in self._channels:
            shape = len(like), channels, *[1] * (like.ndim - 2)
            yield torch.rand(shape, device=like.device)

    def _drop(self, encoder: nn.Module, args: Any, output: Sequence[Tensor]) -> Any:
        if self._masks is None:
            return None  # the output as it is
        return [x * mask.to(x.dtype) for x, mask in zip(output, self._masks, strict=True)]

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureDropout:
        copied = object.__new__(type(self))
        copied._channels, copied._masks = self._channels, None
        return copied
