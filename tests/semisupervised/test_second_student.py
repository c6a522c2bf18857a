import copy

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
        second.optimise(1000 * trainer.loss(second.student_logits(images), target))
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
            student.optimise(trainer.loss(student.student_logits(images), target))

    second = SecondStudent(trainer)
    train(second, range(2))
    state = copy.deepcopy(second.state_dict())
    train(second, range(2, 4))
    continued = SecondStudent(trainer)
    continued.load_state_dict(state)
    train(continued, range(2, 4))
    for a, b in zip(second.network.parameters(), continued.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_with_a_gradient_that_is_not_finite_is_left_out_and_seen(trainer):
    images, target = batch()
    second = SecondStudent(trainer)
    before = copy.deepcopy(second.network.state_dict())
    for factor in (float("inf"), 1.0):
        second.optimise(factor * trainer.loss(second.student_logits(images), target))
        after = second.network.state_dict()
        same = all(torch.equal(before[name], value) for name, value in after.items())
        assert same == (factor != 1) and bool(second.gradient_norm.isfinite()) == (factor == 1)
    assert [bool(norm.isfinite()) for norm in trainer.gradient_norms] == [False, True], (
        "what finish_step looks at"
    )
