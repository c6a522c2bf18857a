"""Two processes on the CPU (gloo): further networks and decoders learn as one process would."""

from __future__ import annotations

import pytest
import torch
from bare import bare_trainer, small_unet
from ranks import in_ranks
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_plgcl.contrast.embedding import EncoderFeatures
from nnunetv2_plgcl.semisupervised.decoders import FurtherDecoders
from nnunetv2_plgcl.semisupervised.perturbation import FeatureDropout
from nnunetv2_plgcl.semisupervised.second_student import SecondStudent

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")


def images_of(rank):
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(10 + rank))


def three_decoders(ranks=None):
    """Network, further decoders, and how to get a loss of both for images."""
    torch.manual_seed(0)
    network = small_unet(2)
    dropout = FeatureDropout(network)
    features = EncoderFeatures(network, range(4))
    further = FurtherDecoders(network)
    run, decode = network, further
    if ranks is not None:
        run, decode = DistributedDataParallel(network), DistributedDataParallel(further)

    def loss(rank):
        torch.manual_seed(20 + rank)
        images = images_of(rank)
        with dropout.on(dropout.masks(images)):
            logits = run(images)
        outputs = [logits, *decode(features.take())]
        return sum(x.square().mean() for scales in outputs for x in scales)

    return [*network.parameters(), *further.parameters()], loss


def second_student(is_ddp):
    torch.manual_seed(0)
    trainer = bare_trainer(exclusive=True)
    trainer.is_ddp = is_ddp
    return SecondStudent(trainer)


def compiled_decoders_without_lowest():
    """Two steps of further decoders whose lowest resolution is in no loss, as nnU-Net leaves it out
    where it compiles; their gradients."""
    torch.manual_seed(0)
    network = small_unet(2)
    features = EncoderFeatures(network, range(4))
    further = FurtherDecoders(network)
    decode = DistributedDataParallel(torch.compile(further, backend="aot_eager"))
    for _ in range(2):
        network(images_of(0))
        outputs = decode([x.detach() for x in features.take()])
        sum(x.square().mean() for scales in outputs for x in scales[:-1]).backward()
    return [p.grad.numpy() for p in further.parameters()]


def learn(rank, ranks, result):
    parameters, loss = three_decoders(ranks)
    loss(rank).backward()
    student = second_student(is_ddp=True)
    logits = student.student_logits(images_of(rank))
    student.backward(100 * sum(x.square().mean() for x in logits))
    student.take_step()
    result[rank] = (
        [p.grad.numpy() for p in parameters],
        {name: value.numpy() for name, value in student.state_dict()["network"].items()},
        compiled_decoders_without_lowest(),
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return in_ranks(learn, 2, tmp_path_factory.mktemp("gloo"))


def test_gradients_of_all_decoders_are_the_mean_over_ranks(outcome):
    parameters, loss = three_decoders()
    for rank in range(2):
        (loss(rank) / 2).backward()
    for gradients, *_ in outcome:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(
                torch.from_numpy(gradient), parameter.grad, atol=1e-6, rtol=1e-4
            )


def test_second_students_of_all_ranks_take_the_step_of_their_mean(outcome):
    student = second_student(is_ddp=False)
    losses = [
        sum(x.square().mean() for x in student.student_logits(images_of(rank))) for rank in range(2)
    ]
    before = [p.clone() for p in student.network.parameters()]
    student.backward(100 * sum(losses) / 2)
    student.take_step()
    after = list(student.network.parameters())
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(after, before, strict=True))
    for _, weights, _ in outcome:
        for name, value in student.state_dict()["network"].items():
            torch.testing.assert_close(torch.from_numpy(weights[name]), value, atol=1e-6, rtol=1e-4)


def test_decoders_go_on_where_the_lowest_resolution_is_in_no_loss(outcome):
    first, second = (of_rank[2] for of_rank in outcome)
    assert sum(not gradient.any() for gradient in first) == 4, "weight and bias of two decoders"
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))
