import pytest
import torch
from bare import small_unet
from torch import nn

from nnunetv2_plgcl.semisupervised.features import DecoderFeatures


@pytest.mark.parametrize(
    ("axes", "residual", "backend"),
    [(2, False, None), (3, False, None), (2, True, None), (2, False, "aot_eager")],
)
def test_the_finest_output_is_made_from_them(axes, residual, backend):
    torch.manual_seed(0)
    network = small_unet(axes, residual=residual)
    run = torch.compile(network, backend=backend) if backend else network
    features = DecoderFeatures(network)
    for _ in range(2):  # the second call runs what the first compiled
        output = run(torch.randn(2, 1, *[16] * axes))[0]
        taken = features.take()
        assert taken.shape[1] == features.num_channels
        torch.testing.assert_close(network.decoder.seg_layers[-1](taken), output)
    taken.sum().backward()
    assert next(network.encoder.parameters()).grad is not None


def test_nothing_is_taken_twice():
    network = small_unet(2)
    features = DecoderFeatures(network)
    network(torch.randn(2, 1, 16, 16))
    features.take()
    with pytest.raises(RuntimeError, match="run the network once"):
        features.take()


def test_another_network_is_refused():
    with pytest.raises(NotImplementedError, match="Conv2d has no decoder.*PlainConvUNet"):
        DecoderFeatures(nn.Conv2d(1, 1, 1))
