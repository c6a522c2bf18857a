import copy
import math

import pytest
import torch
from bare import bare_trainer, small_unet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_plgcl.semisupervised.second_student import SecondStudent


@pytest.fixture
def trainer():
    torch.manual_seed(0)
    trainer = bare_trainer(exclusive=True)
    trainer.network = small_unet(2)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    return trainer


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 1, 16, 16, generator=generator)
    return images, [
        torch.randint(0, 3, (2, 1, n, n), generator=generator, dtype=torch.int16)
        for n in (16, 8, 4)
    ]


def test_the_second_student_has_the_same_architecture_and_other_weights(trainer):
    first = trainer.network
    second = SecondStudent(trainer)
    assert trainer.network is first and second.network is not first
    assert list(second.network.state_dict()) == list(first.state_dict())
    for a, b in zip(first.parameters(), second.network.parameters(), strict=True):
        assert a.shape == b.shape and a is not b
        assert a.dim() == 1 or not torch.equal(a, b)
    held = {id(p) for group in second.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in second.network.parameters()}


def test_it_trains_as_nnunet_trains_its_network(trainer):
    """The same steps as nnUNetTrainer.train_step on a twin, large gradients clipped likewise."""
    second = SecondStudent(trainer)
    twin = bare_trainer(exclusive=True)
    twin.network = copy.deepcopy(second.network)
    twin.optimizer, twin.lr_scheduler = twin.configure_optimizers()
    twin.loss = lambda output, target, loss=trainer.loss: 1000 * loss(output, target)
    images, target = batch()
    before = copy.deepcopy(trainer.network.state_dict())
    for epoch in range(3):
        second.on_train_epoch_start(epoch)
        twin.lr_scheduler.step(epoch)
        second.backward(1000 * trainer.loss(second.student_logits(images), target))
        second.take_step()
        second.gradient_norms.clear()
        nnUNetTrainer.train_step(twin, {"data": images, "target": target})
        rates = [s.optimizer.param_groups[0]["lr"] for s in (second, twin)]
        assert rates[0] == rates[1] == pytest.approx(0.01 * (1 - epoch / 10) ** 0.9)
        for a, b in zip(second.network.parameters(), twin.network.parameters(), strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(before[k], v) for k, v in trainer.network.state_dict().items())


def test_continuing_equals_going_on(trainer):
    images, target = batch()

    def train(student, epochs):
        for epoch in epochs:
            student.on_train_epoch_start(epoch)
            student.backward(trainer.loss(student.student_logits(images), target))
            student.take_step()
            student.gradient_norms.clear()

    second = SecondStudent(trainer)
    train(second, range(2))
    state = copy.deepcopy(second.state_dict())
    train(second, range(2, 4))
    continued = SecondStudent(trainer)
    continued.load_state_dict(state)
    train(continued, range(2, 4))
    for a, b in zip(second.network.parameters(), continued.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("own", "of_first"), [(math.inf, 1.0), (1.0, math.nan), (1.0, 1.0)])
def test_a_step_is_left_out_where_the_gradient_of_either_network_is_not_finite(
    trainer, own, of_first
):
    images, target = batch()
    second = SecondStudent(trainer)
    before = copy.deepcopy(second.network.state_dict())
    trainer.gradient_norms.append(torch.tensor(of_first))
    second.backward(own * trainer.loss(second.student_logits(images), target))
    second.take_step()
    after = second.network.state_dict()
    same = all(torch.equal(before[name], value) for name, value in after.items())
    assert same == (own * of_first != 1)
    finite = [bool(norm.isfinite()) for norm in trainer.gradient_norms]
    assert finite == [of_first == 1, own == 1], "what finish_step looks at"
