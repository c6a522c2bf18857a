"""Two processes on the CPU (gloo): what they remember and learn equals one process's."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from ranks import in_ranks
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_plgcl.contrast.embedding import (
    CropEmbedder,
    EncoderFeatures,
    FeatureEmbedder,
    ProjectionHead,
)
from nnunetv2_plgcl.contrast.guidance import EntropyGuide, draw_classes
from nnunetv2_plgcl.contrast.loss import sampled_info_nce
from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.patches import Windows, window_statistics
from tests.oracles import contrast as oracle

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")

IMAGES, WINDOWS = (3, 1), (2, 5)  # per rank, as where a batch does not divide evenly


def _arrivals(rank: int) -> tuple[Tensor, Tensor]:
    shape = (IMAGES[rank], 2, WINDOWS[rank])
    generator = torch.Generator().manual_seed(rank)
    keep = torch.rand(shape, generator=generator) < 0.7
    return 100 * (rank + 1) + torch.arange(keep.numel()).float().view(*shape, 1), keep


def _batch(rank: int) -> tuple[Tensor, Tensor, Windows]:
    generator = torch.Generator().manual_seed(10 + rank)
    image = torch.randn(2, 1, 16, 16, generator=generator)
    confidence = torch.rand(2, 3, 16, 16, generator=generator)
    windows = EntropyGuide()(window_statistics(confidence, 6), 4, generator=generator)
    return image, confidence, windows


def _network(architecture: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return architecture(
        1, 2, (4, 6), nn.Conv2d, 3, (1, 2), 1, 3, 1, conv_bias=True, nonlin=nn.LeakyReLU
    )


def _loss(logits: Tensor, embeddings: Tensor, windows: Windows, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    other = torch.nn.functional.normalize(torch.randn(2, 3, 5, 8, generator=generator), dim=-1)
    full = torch.ones(3, 5, dtype=torch.bool)
    # no anchor on the last rank: its parameters must take part all the same
    anchors = windows.valid & windows.positive & (rank == 0)
    contrastive = sampled_info_nce(embeddings, anchors, other[0], full, other[1], full, 0.2)
    return logits.square().mean() + contrastive


def _embedder(
    kind: type[nn.Module], network: nn.Module
) -> tuple[nn.Module, Callable[[], list[Tensor]]]:
    """An embedder for a network that is not wrapped yet, and what takes the features for it."""
    torch.manual_seed(1)
    if kind is CropEmbedder:
        head = ProjectionHead(network.encoder.output_channels[-1], 8)
        return CropEmbedder(network.encoder, head), list
    features = EncoderFeatures(network)
    return FeatureEmbedder(ProjectionHead(features.num_channels, 8)), features.take


def _gradients(
    network: nn.Module, embedder: nn.Module, take: Callable[[], list[Tensor]], rank: int
) -> None:
    image, confidence, windows = _batch(rank)
    logits = network(image)
    _loss(logits, embedder(image, take(), confidence, windows), windows, rank).backward()


SETTINGS = list(
    itertools.product((PlainConvUNet, ResidualEncoderUNet), (FeatureEmbedder, CropEmbedder))
)


def _everything(rank: int, ranks: int, result: Any) -> None:
    memory = ClassMemory(2, 6, 1)
    memory.enqueue(*_arrivals(rank))
    gradients = {}
    for architecture, kind in SETTINGS:
        for compiled in (False, True):
            network = _network(architecture)
            embedder, take = _embedder(kind, network)
            run = torch.compile(network, backend="aot_eager") if compiled else network
            wrapped = DistributedDataParallel(run), DistributedDataParallel(embedder)
            _gradients(*wrapped, take, rank)
            gradients[architecture, kind, compiled] = [
                p.grad.numpy() for m in (network, embedder) for p in m.parameters()
            ]
    shown = torch.zeros(1, 9, 4, 4)
    shown[0, rank::3] = 1.0  # three classes, others on each rank
    shown[0, 8] = 1.0  # and one on all
    generator = torch.Generator().manual_seed(rank)
    result[rank] = {
        "classes": [draw_classes(shown, 2, generator).tolist() for _ in range(400)],
        "entries": memory.entries().numpy(),
        "filled": memory.filled().numpy(),
        "gradients": gradients,
    }


@pytest.fixture(scope="module", params=[1, 2])
def outcome(request, tmp_path_factory) -> list[Any]:
    """What each rank came to, with one process and with two."""
    return in_ranks(_everything, request.param, tmp_path_factory.mktemp("gloo"))


def test_every_rank_remembers_all_ranks_in_their_order(outcome):
    reference = oracle.DequeMemory(2, 6)
    for rank in range(len(outcome)):
        reference.enqueue(*_arrivals(rank))
    for seen in outcome:
        for k, queue in enumerate(reference.queues):
            assert sorted(seen["entries"][k][seen["filled"][k]].tolist()) == sorted(
                map(list, queue)
            )


def test_every_rank_draws_the_same_classes_of_what_any_shows(outcome):
    shown = {k for rank in range(len(outcome)) for k in range(rank, 9, 3)} | {8}
    draws = outcome[0]["classes"]
    assert all(seen["classes"] == draws for seen in outcome)
    number = Counter(k for drawn in draws for k in drawn)
    assert set(number) == shown
    expected = 800 / len(shown)
    assert all(abs(n - expected) < 5 * expected**0.5 for n in number.values())


@pytest.mark.parametrize(("architecture", "kind"), SETTINGS)
def test_gradients_are_the_mean_over_ranks(outcome, architecture, kind):
    network = _network(architecture)
    embedder, take = _embedder(kind, network)
    for rank in range(len(outcome)):
        _gradients(network, embedder, take, rank)
    expected = [p.grad / len(outcome) for m in (network, embedder) for p in m.parameters()]
    assert any(g.abs().sum() > 0 for g in expected[-4:])
    for seen in outcome:
        for compiled in (False, True):
            gradients = seen["gradients"][architecture, kind, compiled]
            for one, other in zip(gradients, expected, strict=True):
                torch.testing.assert_close(torch.from_numpy(one), other, atol=1e-6, rtol=1e-4)
