"""Further decoders on one encoder, which differ in how they scale up."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

MODES = {"linear": ("bilinear", "trilinear"), "nearest": ("nearest", "nearest")}


class FurtherDecoders(nn.Module):
    """Decoders like the network's own, with interpolation in place of its transposed convolutions.

    They have their own initial weights, drawn as nnU-Net draws its own, and do not belong to the
    network: what is exported and predicted with has nnU-Net's decoder and keys alone. Their input
    are the encoder's feature maps of a pass that is made anyway (``contrast.EncoderFeatures`` with
    all stages). Parameters have to go to the optimiser, state to the checkpoint; under DDP, wrap
    this module. Source: MC-Net+ (Wu et al., 2022), with its transposed convolution, linear and
    nearest-neighbour decoders.

    Args:
        network: a U-Net of dynamic_network_architectures, bare; its decoder may be in use.
        modes: of each further decoder, "linear" or "nearest".

    Raises:
        NotImplementedError: the network's decoder has no transposed convolutions.
        KeyError: another mode.
    """

    def __init__(self, network: nn.Module, modes: Sequence[str] = ("linear", "nearest")) -> None:
        super().__init__()
        decoder = getattr(network, "decoder", None)
        if not isinstance(getattr(decoder, "transpconvs", None), nn.ModuleList):
            raise NotImplementedError(
                f"{type(network).__name__} has no decoder with 'transpconvs' that could be "
                f"replaced. Needed is a network like PlainConvUNet or ResidualEncoderUNet."
            )
        self.decoders = nn.ModuleList(_like(network, mode) for mode in modes)

    def forward(self, skips: Sequence[Tensor]) -> list[list[Tensor]]:
        """
        Args:
            skips: feature maps of the encoder, finest first, (B, C, *s).

        Returns:
            for each decoder its logits (B, K, *s), one a resolution as the network's own decoder
            had it when it was copied, the finest first.
        """
        outputs = [decoder(skips) for decoder in self.decoders]
        return [out if isinstance(out, list) else [out] for out in outputs]


class Interpolation(nn.Module):
    """A 1x1 convolution, then interpolation; the other way round gives the same and costs more.

    Args:
        transposed: the transposed convolution whose place it takes, for channels, bias and factor.
        mode: "linear" or "nearest".
    """

    def __init__(self, transposed: nn.ConvTranspose2d | nn.ConvTranspose3d, mode: str) -> None:
        super().__init__()
        two = isinstance(transposed, nn.ConvTranspose2d)
        convolution = nn.Conv2d if two else nn.Conv3d
        channels = transposed.in_channels, transposed.out_channels
        self.convolution = convolution(*channels, 1, bias=transposed.bias is not None)
        self.scale = tuple(float(step) for step in transposed.stride)
        self.mode = MODES[mode][0 if two else 1]

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.convolution(x), scale_factor=self.scale, mode=self.mode)


def _like(network: Any, mode: str) -> nn.Module:
    # the decoder holds the encoder, but does not use it: None takes its place in the copy
    decoder: Any = copy.deepcopy(network.decoder, {id(network.encoder): None})
    convolutions = decoder.transpconvs
    decoder.transpconvs = nn.ModuleList(Interpolation(c, mode) for c in convolutions)
    device = next(network.parameters()).device
    if hasattr(network, "initialize"):  # as nnU-Net's get_network_from_plans
        decoder.apply(network.initialize)
    copied: nn.Module = decoder.to(device)
    return copied
