"""From windows to embeddings: projection head, features caught in flight, two embedders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_plgcl.contrast.patches import MASK_THRESHOLD, Windows, class_mask
from nnunetv2_plgcl.separable import multiply_axes

# A smaller share of a cell is a rounding error in float32.
ROUNDING = 1e-6


class ProjectionHead(nn.Module):
    """Two-layer perceptron to L2-normalised embeddings (authors' code: as wide as the encoder).

    Input (..., in_channels), output (..., dim) with unit length. Lengths are divided out in
    float32 under autocast too; float64 stays.

    Args:
        in_channels: width of input and hidden layer.
        dim: numbers per embedding.
    """

    def __init__(self, in_channels: int, dim: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels, in_channels)
        self.out = nn.Linear(in_channels, dim)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.out(F.relu(self.hidden(features)))
        with torch.autocast(projected.device.type, enabled=False):
            dtype = torch.promote_types(projected.dtype, torch.float32)
            return F.normalize(projected.to(dtype), dim=-1)


class EncoderFeatures:
    """Remembers feature maps of each forward pass of ``network.encoder``.

    A forward hook, so the pass that is made anyway gives the features at no cost. Creating one
    makes ``torch.compile`` heed hooks in this process, and forget what it compiled before; run the
    wrapped network. A deep copy of the network remembers for itself. Source: ours.

    Args:
        network: a U-Net of dynamic_network_architectures (PlainConvUNet, ResidualEncoderUNet)
            or any other whose ``encoder`` returns a list of feature maps, finest first, and has
            ``output_channels``.
        stages: indices into that list, negative from the coarsest.

    Attributes:
        num_channels: F, channels of these stages together.

    Raises:
        NotImplementedError: the network has no such encoder.
        ValueError: the encoder has no such stage, or none is asked for.
    """

    def __init__(self, network: nn.Module, stages: Sequence[int] = (-1,)) -> None:
        encoder = getattr(network, "encoder", None)
        channels = getattr(encoder, "output_channels", None)
        if (
            not isinstance(encoder, nn.Module)
            or not isinstance(channels, Sequence)
            or not getattr(encoder, "return_skips", True)
        ):
            _no_usable_encoder(network)
        if not stages or not all(-len(channels) <= stage < len(channels) for stage in stages):
            raise ValueError(
                f"stages must be one or more in [{-len(channels)}, {len(channels) - 1}], as the "
                f"encoder of {type(network).__name__} has {len(channels)} stages, got {stages}."
            )
        self.num_channels: int = sum(channels[stage] for stage in stages)
        # By default torch.compile does not tell networks apart by their hooks: the graph of another
        # one in this process, without this hook, would serve this one.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()  # forget graphs from before
        self._stages = tuple(stage % len(channels) for stage in stages)
        self._encoder: Any = encoder
        self._features: list[Tensor] | None = None
        self._handle = encoder.register_forward_hook(self._remember)

    def take(self) -> list[Tensor]:
        """One (B, C, *s) a stage, the maps of the last forward pass with their gradient; forgets
        them.

        Raises:
            RuntimeError: no forward pass since the last call.
        """
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("No feature maps to take: run the network once before each take().")
        return features

    def of(self, images: Tensor) -> list[Tensor]:
        """The maps of other images (B, C, *spatial), from a pass that ends where the last of them
        is made, if the encoder has ``stages``.

        Repeats ``forward`` of PlainConvEncoder and ResidualEncoder
        (dynamic_network_architectures 0.4.4), which run all stages; a test compares them.
        """
        stages = getattr(self._encoder, "stages", None)
        if stages is None:
            maps = self._encoder(images)
        else:
            stem = getattr(self._encoder, "stem", None)
            maps = [images if stem is None else stem(images)]
            for stage in stages[: max(self._stages) + 1]:
                maps.append(stage(maps[-1]))
            del maps[0]
        return [maps[stage] for stage in self._stages]

    def remove(self) -> None:
        """Remove the hook and forget."""
        self._handle.remove()
        self._features = None

    def _remember(self, encoder: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, (list, tuple)):
            _no_usable_encoder(encoder)
        self._features = [output[stage] for stage in self._stages]


class Embedder(Protocol):
    """Embeds windows.

    Args:
        image: (B, C, *spatial).
        features: feature maps of these images, each (B, C, *s) with the images' field of view.
        confidence: (B, K, *spatial), class probabilities in [0, 1].
        windows: N for each image and class, in voxels of the image.

    Returns:
        (B, K, N, E), L2-normalised. Of a positive window only voxels of its class count
        (confidence of at least 0.5), of a negative window only voxels that are not. What stands
        for an invalid window is finite and means nothing.
    """

    def __call__(
        self,
        image: Tensor,
        features: Sequence[Tensor],
        confidence: Tensor,
        windows: Windows,
    ) -> Tensor: ...


class FeatureEmbedder(nn.Module):
    """Masked average pooling of feature maps, then the head. Source: ours.

    A feature cell weighs as much as the share of it that lies in the class mask, times the share
    that lies in the window. Of several maps the averages are concatenated. Arguments and result as
    in ``Embedder``; ``image`` is not used.

    Args:
        head: maps (..., F) to (..., E), L2-normalised, as ``ProjectionHead``; F is the number of
            channels of all maps together.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        image: Tensor,
        features: Sequence[Tensor],
        confidence: Tensor,
        windows: Windows,
    ) -> Tensor:
        pooled = [masked_average(stage, confidence, windows) for stage in features]
        embeddings: Tensor = self.head(torch.cat(pooled, -1))
        return embeddings


class CropEmbedder(nn.Module):
    """Crop times class mask, encoded again, pooled, then the head (authors' code).

    Arguments and result as in ``Embedder``; ``features`` is not used. Every crop is encoded, the
    invalid too, in one batch of B K N. Where the encoder says by ``strides`` how much it shrinks
    an image, crops are padded at their far ends with zeros (as masked voxels are) to multiples of
    that, and so that the last stage has at least two cells, which instance normalisation needs
    in training (ours).

    The encoder stays the network's: parameters and state of this module are those of the head
    alone, and it cannot be deep-copied. The teacher gets its own embedder from its own encoder
    and head. If ``EncoderFeatures`` watches the encoder, take its features before embedding.

    Args:
        encoder: maps (M, C, *size) to a list of feature maps, the coarsest last.
        head: maps (..., F) to (..., E), L2-normalised, as ``ProjectionHead``.
    """

    def __init__(self, encoder: Callable[[Tensor], Sequence[Tensor]], head: nn.Module) -> None:
        super().__init__()
        self.head = head
        # In a tuple, so that a module is not registered as part of this one.
        self._encoder = (encoder,)

    def forward(
        self,
        image: Tensor,
        features: Sequence[Tensor],
        confidence: Tensor,
        windows: Windows,
    ) -> Tensor:
        crops = masked_crops(image, confidence, windows)
        (encoder,) = self._encoder
        encoded = encoder(_pad_for(encoder, crops.flatten(0, 2)))[-1]
        pooled = encoded.flatten(2).mean(2).view(*windows.positive.shape, -1)
        embeddings: Tensor = self.head(pooled)
        return embeddings

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(
            "A CropEmbedder cannot be deep-copied: the copy's encoder would belong to no network. "
            "Copy the network and the head, then build a CropEmbedder from the copies."
        )


def masked_average(features: Tensor, confidence: Tensor, windows: Windows) -> Tensor:
    """Average of a feature map over each window's class mask, in float32 under autocast too.

    Args:
        features: (B, C, *s), same field of view as the confidence maps.
        confidence: (B, K, *spatial).
        windows: N for each image and class.

    Returns:
        (B, K, N, C), zero where a window holds no voxel of its side.
    """
    with torch.autocast(features.device.type, enabled=False):
        weights = _cell_weights(confidence, windows, features.shape[2:])
        dtype = torch.promote_types(features.dtype, weights.dtype)
        cells = features.flatten(2).mT.to(dtype)
        pooled = weights.flatten(1, 2).flatten(2).to(dtype) @ cells
    return pooled.view(*windows.positive.shape, -1)


def masked_crops(image: Tensor, confidence: Tensor, windows: Windows) -> Tensor:
    """Cut windows out of images and blank what is not of their side (poster step 2).

    Args:
        image: (B, C, *spatial).
        confidence: (B, K, *spatial).
        windows: N for each image and class.

    Returns:
        (B, K, N, C, *size).
    """
    batch, channels, *spatial = image.shape
    classes, num = windows.positive.shape[1:]
    voxel = _flat_voxels(windows, spatial)
    inside = confidence.flatten(2).gather(2, voxel.flatten(2)) >= MASK_THRESHOLD
    mask = inside.view(voxel.shape) == windows.positive[..., None]
    everywhere = voxel.flatten(1)[:, None].expand(-1, channels, -1)
    crops = image.flatten(2).gather(2, everywhere).view(batch, channels, classes, num, -1)
    crops = torch.where(mask[:, None], crops, 0)
    return crops.movedim(1, 3).reshape(batch, classes, num, channels, *windows.size)


def _flat_voxels(windows: Windows, spatial: Sequence[int]) -> Tensor:
    """(B, K, N, volume) long: positions of the windows' voxels in the flattened image."""
    device = windows.start.device
    steps = [math.prod(spatial[axis + 1 :]) for axis in range(len(spatial))]
    offset = torch.zeros((), dtype=torch.long, device=device)
    first = torch.zeros((), dtype=torch.long, device=device)
    for axis, (edge, step) in enumerate(zip(windows.size, steps, strict=True)):
        offset = offset[..., None] + torch.arange(edge, device=device) * step
        first = first + windows.start[..., axis] * step
    return first[..., None] + offset.flatten()


def _pad_for(encoder: object, crops: Tensor) -> Tensor:
    """Zero-pad (M, C, *size) to what the encoder's public ``strides`` call for, if it has any."""
    strides = getattr(encoder, "strides", None)
    if strides is None:
        return crops
    shrink = [math.prod(axis) for axis in zip(*strides, strict=True)]
    cells = [math.ceil(edge / s) for edge, s in zip(crops.shape[2:], shrink, strict=True)]
    if math.prod(cells) == 1:
        cells[-1] = 2
    padding = [(0, n * s - edge) for n, s, edge in zip(cells, shrink, crops.shape[2:], strict=True)]
    return F.pad(crops, [end for axis in reversed(padding) for end in axis])


@torch.no_grad()
def _cell_weights(confidence: Tensor, windows: Windows, cells: Sequence[int]) -> Tensor:
    """(B, K, N, *cells): share of each cell in an average over a window's class mask.

    They add up to 1, or are all 0 where the window holds no voxel of its side.
    """
    mask = class_mask(confidence)
    dtype = mask.dtype
    within = _area_pool(mask, cells)[:, :, None]
    # where cells cut voxels, 1 - within is not exactly 0 when it should be
    outside = F.threshold(1 - within, ROUNDING, 0)
    axes = len(cells)
    weights = torch.where(windows.positive[(...,) + (None,) * axes], within, outside)
    for axis, (edge, length, number) in enumerate(
        zip(windows.size, confidence.shape[2:], cells, strict=True)
    ):
        overlap = _overlap(windows.start[..., axis].to(dtype), edge, length, number)
        shape = [1] * axes
        shape[axis] = number
        weights *= overlap.view(*overlap.shape[:-1], *shape)
    total = weights.flatten(3).sum(-1)[(...,) + (None,) * axes]
    return weights.div_(total.clamp(min=torch.finfo(dtype).tiny))


def _area_pool(maps: Tensor, cells: Sequence[int]) -> Tensor:
    """Mean of (B, K, *spatial) over each of (*cells,) equal boxes, which may cut voxels."""
    lengths = maps.shape[2:]
    if all(length % number == 0 for length, number in zip(lengths, cells, strict=True)):
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(cells) - 1]
        return pool(maps, [length // number for length, number in zip(lengths, cells, strict=True)])
    overlaps = []
    for length, number in zip(lengths, cells, strict=True):
        first = torch.arange(length, dtype=maps.dtype, device=maps.device)
        overlaps.append(_overlap(first, 1, length, number))
    return multiply_axes(maps, overlaps)


def _overlap(start: Tensor, edge: int, length: int, cells: int) -> Tensor:
    """Share of each of ``cells`` equal cells of an axis of ``length`` voxels that lies in
    [start, start + edge): (...) to (..., cells)."""
    width = length / cells
    low = torch.arange(cells, dtype=start.dtype, device=start.device) * width
    start = start[..., None]
    covered = torch.minimum(start + edge, low + width) - torch.maximum(start, low)
    return covered.clamp(min=0) / width


def _no_usable_encoder(module: nn.Module) -> NoReturn:
    raise NotImplementedError(
        f"{type(module).__name__} gives no encoder features. Needed is a network with a module "
        f"'encoder' that returns the list of its feature maps, finest first, and has their "
        f"'output_channels', as PlainConvUNet and ResidualEncoderUNet. If the network is wrapped "
        f"(DistributedDataParallel), pass the bare one."
    )
