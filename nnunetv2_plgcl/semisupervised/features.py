"""Feature maps of the decoder, for heads beside the network's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DecoderFeatures:
    """Remembers what the last stage of ``network.decoder`` gives in each forward pass, from which
    the network makes its finest output.

    A forward hook: the network keeps its modules. As ``contrast.embedding.EncoderFeatures``,
    creating one makes ``torch.compile`` heed hooks in this process, and forget what it compiled
    before. Copy the network first: a deep copy would carry the hook along. Source: ours.

    Args:
        network: a U-Net of dynamic_network_architectures, bare, not wrapped.

    Attributes:
        num_channels: of these feature maps.

    Raises:
        NotImplementedError: the network has no such decoder.
    """

    def __init__(self, network: nn.Module) -> None:
        decoder = getattr(network, "decoder", None)
        stages, outputs = getattr(decoder, "stages", None), getattr(decoder, "seg_layers", None)
        if not isinstance(stages, nn.ModuleList) or not isinstance(outputs, nn.ModuleList):
            raise NotImplementedError(
                f"{type(network).__name__} has no decoder with 'stages' and 'seg_layers', from "
                f"which a further head could work. Needed is a network like PlainConvUNet or "
                f"ResidualEncoderUNet."
            )
        finest: Any = outputs[-1]
        self.num_channels: int = finest.in_channels
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()
        self._features: Tensor | None = None
        stages[-1].register_forward_hook(self._remember)

    def take(self) -> Tensor:
        """(B, num_channels, *spatial) of the last forward pass, with their gradient; forgets them.

        Raises:
            RuntimeError: no forward pass since the last call.
        """
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("No feature maps to take: run the network once before each take().")
        return features

    def _remember(self, stage: nn.Module, args: Any, output: Tensor) -> None:
        self._features = output
