from __future__ import annotations

import copy
import math

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from nnunetv2_plgcl.contrast.embedding import (
    CropEmbedder,
    EncoderFeatures,
    FeatureEmbedder,
    ProjectionHead,
    masked_crops,
)
from nnunetv2_plgcl.contrast.guidance import CosineGuide, EntropyGuide, cosine_similarity
from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.patches import Windows, every_window, window_statistics
from tests.oracles import contrast as oracle

ARCHITECTURES = [
    pytest.param(PlainConvUNet, 2, id="plain-2d"),
    pytest.param(PlainConvUNet, 3, id="plain-3d"),
    pytest.param(ResidualEncoderUNet, 2, id="residual-2d"),
    pytest.param(ResidualEncoderUNet, 3, id="residual-3d"),
]


def _network(architecture: type[nn.Module], axes: int) -> nn.Module:
    torch.manual_seed(0)
    blocks = "n_blocks_per_stage" if architecture is ResidualEncoderUNet else "n_conv_per_stage"
    return architecture(
        input_channels=1,
        n_stages=3,
        features_per_stage=(4, 6, 8),
        conv_op={2: nn.Conv2d, 3: nn.Conv3d}[axes],
        kernel_sizes=3,
        strides=(1, 2, 2),
        num_classes=3,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes],
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        **{blocks: 1},
    )


def _batch(axes: int, edge: int = 16, classes: int = 3) -> tuple[Tensor, Tensor, Windows]:
    """Images, blocky confidence maps and windows whose edges differ."""
    torch.manual_seed(1)
    image = torch.randn(2, 1, *[edge] * axes)
    coarse = torch.randn(2, classes, *[edge // 4] * axes)
    confidence = F.interpolate(4 * coarse, size=image.shape[2:]).softmax(1)
    windows = EntropyGuide()(window_statistics(confidence, (6, 9, 5)[:axes], 3), 4)
    assert (windows.valid & windows.positive).any() and (windows.valid & ~windows.positive).any()
    return image, confidence, windows


def _expected_by_features(
    features: Tensor, confidence: Tensor, windows: Windows, head: nn.Module
) -> dict[tuple[int, ...], Tensor]:
    expected = {}
    for b, k, n in windows.valid.nonzero().tolist():
        mask = (confidence[b, k] >= 0.5) == windows.positive[b, k, n]
        pooled = oracle.masked_window_mean(
            features[b], mask, windows.start[b, k, n].tolist(), windows.size
        )
        expected[b, k, n] = head(pooled)
    return expected


@pytest.mark.parametrize(
    ("spatial", "cells", "size"),
    [
        ((16, 24), (4, 6), (5, 7)),
        ((15, 16), (5, 16), (4, 3)),
        ((8, 12, 16), (2, 3, 16), (3, 8, 5)),
        ((8, 8, 8), (1, 2, 4), (8, 2, 3)),
        ((30,), (6,), (7,)),
    ],
)
def test_feature_embedder_equals_a_loop_over_cells(spatial, cells, size):
    torch.manual_seed(0)
    confidence = torch.rand(2, 3, *spatial)
    features = torch.randn(2, 5, *cells)
    windows = EntropyGuide()(window_statistics(confidence, size, 1), 6)
    head = ProjectionHead(5, 7)
    result = FeatureEmbedder(head)(torch.empty(0), [features], confidence, windows)
    assert result.shape == (2, 3, 6, 7)
    for index, expected in _expected_by_features(features, confidence, windows, head).items():
        torch.testing.assert_close(result[index], expected, atol=1e-5, rtol=1e-5)


def test_features_as_fine_as_the_image_give_the_mean_over_the_masked_window():
    torch.manual_seed(0)
    confidence, features = torch.rand(1, 2, 9, 9), torch.randn(1, 4, 9, 9)
    windows = EntropyGuide()(window_statistics(confidence, 4, 1), 5)
    head = nn.Identity()
    result = FeatureEmbedder(head)(torch.empty(0), [features], confidence, windows)
    for b, k, n in windows.valid.nonzero().tolist():
        where = oracle.box(windows.start[b, k, n], windows.size)
        mask = (confidence[b, k][where] >= 0.5) == windows.positive[b, k, n]
        torch.testing.assert_close(
            result[b, k, n], features[b][(slice(None), *where)][:, mask].mean(1)
        )


def test_cells_that_cut_voxels_are_weighted_by_their_area():
    """Five voxels, two cells of 2.5: the third voxel counts half for each."""
    confidence = torch.tensor([[[0.0, 0.0, 1.0, 1.0, 0.0]]])
    features = torch.tensor([[[10.0, 20.0]]])
    start = torch.tensor([[[[0]]]])
    true = torch.ones(1, 1, 1, dtype=torch.bool)
    embed = FeatureEmbedder(nn.Identity())
    whole = embed(torch.empty(0), [features], confidence, Windows(start, true, true, (5,)))
    assert whole.item() == pytest.approx((0.5 * 10 + 1.5 * 20) / 2)
    complement = embed(torch.empty(0), [features], confidence, Windows(start, ~true, true, (5,)))
    assert complement.item() == pytest.approx((2 * 10 + 1 * 20) / 3)


@pytest.mark.parametrize("cells", [3, 7, 10])
def test_invalid_windows_embed_to_something_finite(cells):
    """Full and empty masks, where 1 - (mean over a cell) would only nearly be 0."""
    confidence = torch.stack((torch.ones(70, 70), torch.zeros(70, 70)))[None]
    start = torch.randint(0, 50, (1, 2, 8, 2))
    positive = torch.tensor([False, True]).view(1, 2, 1).expand(1, 2, 8)
    windows = Windows(start, positive, torch.zeros(1, 2, 8, dtype=torch.bool), (13, 11))
    features = torch.randn(1, 4, cells, cells)
    pooled = FeatureEmbedder(nn.Identity())(torch.empty(0), [features], confidence, windows)
    assert (pooled == 0).all()
    assert (
        FeatureEmbedder(ProjectionHead(4))(torch.empty(0), [features], confidence, windows)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(("architecture", "axes"), ARCHITECTURES)
@pytest.mark.parametrize(("stage", "compile_backend"), [(-1, None), (1, "aot_eager")])
def test_features_of_unets_are_caught_and_carry_gradient(
    architecture, axes, stage, compile_backend
):
    network = _network(architecture, axes)
    features = EncoderFeatures(network, [stage])
    assert features.num_channels == (4, 6, 8)[stage]
    image, confidence, windows = _batch(axes)
    head = ProjectionHead(features.num_channels, 16)
    run = torch.compile(network, backend=compile_backend) if compile_backend else network
    for _ in range(2):  # the second call runs what the first compiled
        run(image)
        (caught,) = features.take()
    torch.testing.assert_close(caught, network.encoder(image)[stage])

    result = FeatureEmbedder(head)(image, [caught], confidence, windows)
    assert result.shape == (2, 3, 4, 16)
    expected = _expected_by_features(caught.detach(), confidence, windows, head)
    for index, value in expected.items():
        torch.testing.assert_close(result[index], value, atol=1e-5, rtol=1e-4)
    result.mul(torch.randn_like(result)).sum().backward()
    first = next(network.encoder.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


def test_features_are_caught_under_the_inductor_compiler():
    torch.manual_seed(0)
    network = PlainConvUNet(1, 2, (2, 3), nn.Conv2d, 3, (1, 2), 1, 2, 1, nonlin=nn.ReLU)
    features = EncoderFeatures(network, [-2])
    image, *_ = _batch(2)
    compiled = torch.compile(network)
    for _ in range(2):
        compiled(image)
        (caught,) = features.take()
    torch.testing.assert_close(caught, network.encoder(image)[-2], atol=1e-4, rtol=1e-4)
    caught.sum().backward()
    assert next(network.encoder.parameters()).grad is not None


def test_networks_compiled_in_one_process_keep_their_own_features():
    image, *_ = _batch(2)
    plain, *networks = (_network(PlainConvUNet, 2) for _ in range(3))
    compiled = [torch.compile(network, backend="aot_eager") for network in (plain, *networks)]
    for run in compiled:  # the hooks come after the first compiled call
        run(image)
    features = [EncoderFeatures(network, [1]) for network in networks]
    for _ in range(2):
        for network, run, seen in zip(networks, compiled[1:], features, strict=True):
            run(image)
            torch.testing.assert_close(seen.take(), [network.encoder(image)[1]])
            seen.take()  # of the encoder's own pass
        compiled[0](image)


def _crop_embedder(
    architecture: type[nn.Module], axes: int
) -> tuple[nn.Module, CropEmbedder, tuple[Tensor, Tensor, Windows]]:
    network = _network(architecture, axes)
    return network, CropEmbedder(network.encoder, ProjectionHead(8, 16)), _batch(axes)


@pytest.mark.parametrize(("architecture", "axes"), ARCHITECTURES)
def test_crop_embedder_equals_a_loop_over_crops(architecture, axes):
    network, embedder, (image, confidence, windows) = _crop_embedder(architecture, axes)
    result = embedder(image, [], confidence, windows)
    assert result.shape == (2, 3, 4, 16)
    for b, k, n in windows.valid.nonzero().tolist()[::2]:
        crop = oracle.masked_crop(
            image[b],
            confidence[b, k],
            windows.start[b, k, n],
            windows.size,
            windows.positive[b, k, n].item(),
        )
        padded = torch.zeros(1, 1, *(8, 12, 8)[:axes])  # the encoder shrinks by 4
        padded[0, 0][oracle.box([0] * axes, windows.size)] = crop[0]
        pooled = network.encoder(padded)[-1][0].flatten(1).mean(1)
        torch.testing.assert_close(result[b, k, n], embedder.head(pooled), atol=1e-5, rtol=1e-4)
    result.mul(torch.randn_like(result)).sum().backward()
    assert next(network.encoder.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize(("architecture", "axes"), ARCHITECTURES[::3])
def test_crop_embedder_runs_with_a_compiled_encoder(architecture, axes):
    network, embedder, batch = _crop_embedder(architecture, axes)
    compiled = CropEmbedder(torch.compile(network.encoder, backend="aot_eager"), embedder.head)
    image, confidence, windows = batch
    torch.testing.assert_close(
        compiled(image, [], confidence, windows),
        embedder(image, [], confidence, windows),
    )


@pytest.mark.parametrize("size", [1, 3, 4])
def test_crops_smaller_than_the_encoder_shrinks_are_padded_to_two_cells(size):
    network, embedder, (image, confidence, _) = _crop_embedder(ResidualEncoderUNet, 2)
    windows = EntropyGuide()(window_statistics(confidence, size), 2)
    network.train()
    assert embedder(image, [], confidence, windows).isfinite().all()


def test_crops_are_not_padded_for_an_encoder_without_strides():
    seen = []

    def encoder(crops: Tensor) -> list[Tensor]:
        seen.append(crops)
        return [crops, 2 * crops]

    image, confidence, windows = _batch(2)
    result = CropEmbedder(encoder, nn.Identity())(image, [], confidence, windows)
    assert seen[0].shape == (24, 1, 6, 9)
    torch.testing.assert_close(result[..., 0].flatten(), 2 * seen[0].mean((1, 2, 3)))


@pytest.mark.parametrize("spatial", [(11, 9), (5, 8, 7), (13,)])
def test_masked_crops_equal_slices(spatial):
    torch.manual_seed(0)
    image, confidence = torch.randn(2, 3, *spatial), torch.rand(2, 2, *spatial)
    windows = EntropyGuide()(window_statistics(confidence, (4, 3, 5)[: len(spatial)], 1), 5)
    crops = masked_crops(image, confidence, windows)
    assert crops.shape == (2, 2, 5, 3, *windows.size)
    for b in range(2):
        for k in range(2):
            for n in range(5):
                expected = oracle.masked_crop(
                    image[b],
                    confidence[b, k],
                    windows.start[b, k, n],
                    windows.size,
                    windows.positive[b, k, n].item(),
                )
                assert torch.equal(crops[b, k, n], expected)


def test_crop_embedder_owns_the_head_alone():
    _, embedder, _ = _crop_embedder(PlainConvUNet, 2)
    assert all(name.startswith("head.") for name in embedder.state_dict())
    assert len(list(embedder.parameters())) == 4


def test_crop_embedder_refuses_a_deep_copy():
    _, embedder, _ = _crop_embedder(PlainConvUNet, 2)
    with pytest.raises(TypeError, match="build a CropEmbedder from the copies"):
        AveragedModel(embedder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_neither_pooling_nor_normalisation(dtype):
    torch.manual_seed(0)
    confidence, features = torch.rand(2, 3, 16, 16), torch.randn(2, 8, 4, 4)
    windows = EntropyGuide()(window_statistics(confidence, 5), 4)
    exact = FeatureEmbedder(nn.Identity())(torch.empty(0), [features], confidence, windows)
    embedder = FeatureEmbedder(ProjectionHead(8))
    with torch.autocast("cpu", dtype=dtype):
        again = FeatureEmbedder(nn.Identity())(torch.empty(0), [features], confidence, windows)
        result = embedder(torch.empty(0), [features.to(dtype)], confidence.to(dtype), windows)
    assert torch.equal(again, exact)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(2, 3, 4))


def test_projection_head_is_a_two_layer_perceptron_of_unit_length():
    torch.manual_seed(0)
    head, x = ProjectionHead(6), torch.randn(4, 3, 6)
    weights = {name: p.detach() for name, p in head.named_parameters()}
    hidden = (x @ weights["hidden.weight"].T + weights["hidden.bias"]).clamp(min=0)
    out = hidden @ weights["out.weight"].T + weights["out.bias"]
    assert out.shape == (4, 3, 128)
    torch.testing.assert_close(head(x), out / out.norm(dim=-1, keepdim=True))
    assert head.double()(x.double()).dtype == torch.float64


def test_cosine_guide_finds_windows_like_the_class_mean():
    """The whole way: embed every window, compare with the memory's mean, choose."""
    confidence = torch.zeros(1, 2, 8, 8)
    confidence[:, 0] = 1
    features = torch.zeros(1, 2, 2, 2)
    features[0, :, 0, 1] = torch.tensor([0.0, 1.0])  # the cell that looks like class 0
    features[0, 0][features[0, 1] == 0] = 1.0
    embed = FeatureEmbedder(nn.Identity())
    memory = ClassMemory(2, 4, 2)
    memory.enqueue(
        torch.tensor([0.0, 1.0]).expand(1, 2, 1, 2), torch.ones(1, 2, 1, dtype=torch.bool)
    )
    statistics = window_statistics(confidence, 4, 4)
    candidates = embed(torch.empty(0), [features], confidence, every_window(statistics))
    similarity = cosine_similarity(candidates, memory.mean())
    windows = CosineGuide()(statistics, 1, similarity)
    assert windows.start[0, 0].tolist() == [[0, 4]]
    assert windows.valid.tolist() == [[[True], [False]]]


def test_features_are_forgotten_once_taken():
    network = _network(PlainConvUNet, 2)
    features = EncoderFeatures(network)
    network(torch.randn(1, 1, 16, 16))
    features.take()
    with pytest.raises(RuntimeError, match="run the network once before each take"):
        features.take()


def test_a_removed_hook_remembers_nothing():
    network = _network(PlainConvUNet, 2)
    features = EncoderFeatures(network)
    network(torch.randn(1, 1, 16, 16))
    features.remove()
    network(torch.randn(1, 1, 16, 16))
    with pytest.raises(RuntimeError):
        features.take()


def test_a_deep_copy_of_a_hooked_network_does_not_overwrite_features():
    network = _network(PlainConvUNet, 2)
    features = EncoderFeatures(network)
    twin = copy.deepcopy(network)
    image = torch.randn(1, 1, 16, 16)
    network(image)
    twin(torch.randn(1, 1, 16, 16))
    torch.testing.assert_close(features.take()[0], network.encoder(image)[-1])


@pytest.mark.parametrize(("architecture", "axes"), ARCHITECTURES)
@pytest.mark.parametrize("stages", [[-2], [0, -1]])
def test_features_of_other_images_are_those_of_the_whole_encoder(architecture, axes, stages):
    network = _network(architecture, axes)
    features, images = EncoderFeatures(network, stages), torch.randn(2, 1, *[16] * axes)
    last = []
    network.encoder.stages[-1].register_forward_hook(lambda *_: last.append(True))
    found = features.of(images)
    assert len(last) == (-1 in stages)
    whole = network.encoder(images)
    assert all(map(torch.equal, found, [whole[stage] for stage in stages]))


def _no_skips() -> nn.Module:
    network = _network(PlainConvUNet, 2)
    network.encoder.return_skips = False
    return network


def _primus() -> nn.Module:
    return Primus(1, 48, (8, 8, 8), 2, eva_depth=1, eva_numheads=2, input_shape=(16, 16, 16))


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: nn.Linear(2, 2), "Linear"), (_no_skips, "PlainConvUNet"), (_primus, "Primus")],
)
def test_networks_without_a_usable_encoder_are_named(make, name):
    with pytest.raises(NotImplementedError, match=f"{name} gives no encoder features.*'encoder'"):
        EncoderFeatures(make())


@pytest.mark.parametrize("stages", [[3], [-1, -4], []])
def test_stages_that_do_not_exist_are_named(stages):
    with pytest.raises(ValueError, match=r"\[-3, 2\].*PlainConvUNet.*got \[") as raised:
        EncoderFeatures(_network(PlainConvUNet, 2), stages)
    assert str(stages) in str(raised.value)


@pytest.mark.parametrize(("architecture", "axes"), ARCHITECTURES[:2])
def test_averages_of_several_stages_are_concatenated(architecture, axes):
    network = _network(architecture, axes)
    features = EncoderFeatures(network, [-1, 0])
    assert features.num_channels == 8 + 4
    image, confidence, windows = _batch(axes)
    network(image)
    coarse, fine = features.take()
    embed = FeatureEmbedder(nn.Identity())
    together = embed(image, [coarse, fine], confidence, windows)
    torch.testing.assert_close(together[..., :8], embed(image, [coarse], confidence, windows))
    torch.testing.assert_close(together[..., 8:], embed(image, [fine], confidence, windows))


def test_embedding_a_window_does_not_depend_on_the_others():
    image, confidence, windows = _batch(2)
    features = torch.randn(2, 4, 8, 8)
    embed = FeatureEmbedder(ProjectionHead(4))
    together = embed(image, [features], confidence, windows)
    alone = embed(
        image,
        [features],
        confidence,
        Windows(
            windows.start[:, :, 2:3],
            windows.positive[:, :, 2:3],
            windows.valid[:, :, 2:3],
            windows.size,
        ),
    )
    torch.testing.assert_close(together[:, :, 2:3], alone)


def test_shifting_everything_by_whole_cells_shifts_nothing_else():
    torch.manual_seed(0)
    confidence, features = torch.rand(1, 2, 32, 32), torch.randn(1, 4, 8, 8)
    start = torch.tensor([3, 6]).expand(1, 2, 1, 2)
    side = torch.ones(1, 2, 1, dtype=torch.bool)
    embed = FeatureEmbedder(ProjectionHead(4))
    here = embed(torch.empty(0), [features], confidence, Windows(start, side, side, (9, 7)))
    moved = embed(
        torch.empty(0),
        [features.roll((2, 1), (2, 3))],
        confidence.roll((8, 4), (2, 3)),
        Windows(start + torch.tensor([8, 4]), side, side, (9, 7)),
    )
    torch.testing.assert_close(here, moved)
    assert math.isclose(here.norm(dim=-1).mean().item(), 1, rel_tol=1e-5)
