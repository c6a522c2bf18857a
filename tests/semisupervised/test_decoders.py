import pytest
import torch
from bare import small_unet
from torch import nn
from torch.nn import functional as F

from nnunetv2_plgcl.semisupervised.decoders import FurtherDecoders, Interpolation

MODES = ("linear", "nearest")


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_further_decoders_are_nnunets_but_for_the_way_they_scale_up(axes, residual):
    torch.manual_seed(0)
    network = small_unet(axes, residual=residual)
    skips = network.encoder(torch.randn(2, 1, *[16] * axes))
    further = FurtherDecoders(network, MODES)
    names = {"linear": {2: "bilinear", 3: "trilinear"}[axes], "nearest": "nearest"}
    for mode, decoder, outputs in zip(MODES, further.decoders, further(skips), strict=True):
        x, expected = skips[-1], []
        for stage, scale_up in enumerate(decoder.transpconvs):
            weight, bias = scale_up.convolution.weight, scale_up.convolution.bias
            larger = F.interpolate(x, scale_factor=2, mode=names[mode])
            x = {2: F.conv2d, 3: F.conv3d}[axes](larger, weight, bias)
            x = decoder.stages[stage](torch.cat((x, skips[-stage - 2]), 1))
            expected.insert(0, decoder.seg_layers[stage](x))
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
        assert [o.shape for o in outputs] == [o.shape for o in network.decoder(skips)]


def test_each_decoder_has_its_own_weights_drawn_as_nnunets():
    torch.manual_seed(0)
    network = small_unet(2)
    keys = set(network.state_dict())
    further = FurtherDecoders(network, MODES)
    assert set(network.state_dict()) == keys, "the deployed network must stay nnU-Net's"
    assert not any("encoder" in name for name in further.state_dict())
    of_network = {id(p) for p in network.parameters()}
    assert not any(id(p) in of_network for p in further.parameters())
    first, second = (dict(d.named_parameters()) for d in further.decoders)
    for name, value in network.decoder.named_parameters():
        if value.dim() > 1 and name in first:  # convolutions; norms and biases start alike
            assert not torch.equal(first[name], value)
            assert not torch.equal(first[name], second[name])
    for name, value in first.items():
        if value.numel() > 400:
            he = (2 / (1 + 1e-4) / value[0].numel()) ** 0.5  # of nnU-Net's initialisation
            assert value.std().item() == pytest.approx(he, rel=0.15), name


def test_all_decoders_train_the_one_encoder():
    torch.manual_seed(0)
    network = small_unet(2)
    further = FurtherDecoders(network)
    skips = network.encoder(torch.randn(2, 1, 16, 16))
    for outputs in further(skips):
        gradients = torch.autograd.grad(
            sum(o.square().mean() for o in outputs), list(network.encoder.parameters()),
            retain_graph=True,
        )  # fmt: skip
        assert all(g.abs().sum() > 0 for g in gradients if g.dim() > 1)
    sum(outputs[0].square().mean() for outputs in further(skips)).backward()
    unused = {"seg_layers.0", "seg_layers.1"}  # of the coarser resolutions, without a loss here
    for decoder in further.decoders:
        for name, value in decoder.named_parameters():
            assert (value.grad is None) == (name.rpartition(".")[0] in unused), name


def test_without_deep_supervision_there_is_one_output():
    network = small_unet(2, deep_supervision=False)
    outputs = FurtherDecoders(network)(network.encoder(torch.randn(1, 1, 16, 16)))
    assert [[o.shape for o in decoder] for decoder in outputs] == [[(1, 3, 16, 16)]] * 2


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_axes_are_scaled_by_the_strides_of_the_transposed_convolution(stride, mode):
    transposed = nn.ConvTranspose3d(4, 2, stride, stride, bias=False)
    x = torch.randn(1, 4, 3, 4, 5)
    ours = Interpolation(transposed, mode)
    assert ours(x).shape == transposed(x).shape and ours.convolution.bias is None


def test_a_network_without_transposed_convolutions_is_refused():
    with pytest.raises(NotImplementedError, match="transpconvs"):
        FurtherDecoders(nn.Linear(1, 1))
