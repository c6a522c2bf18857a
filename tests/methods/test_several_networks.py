"""AD-MT, CPS and MC-Net+: who teaches whom, against loops over voxels."""

import math
from types import SimpleNamespace

import pytest
import torch
from bare import bare_trainer

from nnunetv2_plgcl.semisupervised.losses import loss_with_ignore_label
from nnunetv2_plgcl.semisupervised.step import UnlabelledBatch
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerADMT import (
    ADMTSettings,
    join_predictions,
    nnUNetTrainerADMT,
)
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerCPS import CPSSettings, nnUNetTrainerCPS
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerMCNetPlus import mutual_consistency


def predictions(number, exclusive, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = [1.5 * torch.randn(2, 3, 5, 6, generator=generator) for _ in range(number)]
    return [x.softmax(1) if exclusive else x.sigmoid() for x in logits]


def voxels(*maps):
    for b, y, x in torch.cartesian_prod(*map(torch.arange, maps[0][:, 0].shape)).tolist():
        yield (b, y, x), [m[b, :, y, x].tolist() for m in maps]


def entropy(p, exclusive):
    if exclusive:
        return -sum(v * math.log(v) for v in p) / math.log(len(p))
    return -sum(v * math.log2(v) + (1 - v) * math.log2(1 - v) for v in p) / len(p)


def decision(p, exclusive):
    return max(range(len(p)), key=p.__getitem__) if exclusive else [v > 0.5 for v in p]


def sureness(p, exclusive):
    return max(p) if exclusive else min(max(v, 1 - v) for v in p)


@pytest.mark.parametrize("exclusive", [True, False])
def test_admt_joins_two_teachers_and_in_doubt_the_student(exclusive):
    first, second, student = predictions(3, exclusive)
    joined = join_predictions(first, second, student, exclusive)
    taken = 0
    for (b, y, x), (one, two, own) in voxels(first, second, student):
        a, c = math.exp(-entropy(one, exclusive)), math.exp(-entropy(two, exclusive))
        expected = [(a * p + c * q) / (a + c) for p, q in zip(one, two, strict=True)]
        differ = decision(one, exclusive) != decision(two, exclusive)
        if differ and sureness(own, exclusive) > sureness(expected, exclusive):
            expected, taken = own, taken + 1
        assert joined[b, :, y, x].tolist() == pytest.approx(expected, rel=1e-4)
    assert 0 < taken < 60


def test_admt_teachers_follow_in_turns_of_at_most_the_longest():
    turns = turns_of_admt(rank=0)
    lengths = [len(turn) for turn in turns.replace("12", "1 2").replace("21", "2 1").split()]
    assert lengths[0] == 3 and set(lengths[:-1]) == {1, 2, 3}
    assert turns_of_admt(rank=1) == turns, "teachers of all ranks stay the same"


def turns_of_admt(rank: int) -> str:
    """Which teacher follows in each of 60 steps."""
    trainer = object.__new__(nnUNetTrainerADMT)
    trainer.config = ADMTSettings(longest_turn=3)
    trainer.network = torch.nn.Linear(1, 1)
    trainer.teacher, trainer.second_teacher = (EMATeacher(trainer.network, 0.9) for _ in range(2))
    trainer.first_has_turn, trainer.left_of_turn = True, 3
    torch.manual_seed(rank)  # each rank of a distributed training has its own random numbers
    turns = []
    for _ in range(60):
        before = int(trainer.teacher.n_averaged), int(trainer.second_teacher.n_averaged)
        trainer.update_teacher()
        after = int(trainer.teacher.n_averaged), int(trainer.second_teacher.n_averaged)
        assert sum(after) == sum(before) + 1, "one of them follows in each step"
        turns.append("1" if after[0] > before[0] else "2")
    return "".join(turns)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_mutual_consistency(exclusive, temperature):
    of_decoders = predictions(3, exclusive)
    expected = 0.0
    for _, each in voxels(*of_decoders):
        for i in range(3):
            for j in range(3):
                if i == j:
                    continue
                power = [p ** (1 / temperature) for p in each[j]]
                rest = [(1 - p) ** (1 / temperature) for p in each[j]]
                sums = (
                    [sum(power)] * 3
                    if exclusive
                    else [p + r for p, r in zip(power, rest, strict=True)]
                )
                sharp = [p / s for p, s in zip(power, sums, strict=True)]
                expected += sum((p - s) ** 2 for p, s in zip(each[i], sharp, strict=True))
    expected /= of_decoders[0].numel() * 3
    loss = mutual_consistency(of_decoders, temperature, exclusive)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_no_gradient_runs_through_sharpened_predictions():
    first, second = (p.requires_grad_() for p in predictions(2, True))
    mutual_consistency([first, second.detach()], 0.5, True).backward()
    power = second.detach() ** 2
    pull = first.detach() - power / power.sum(1, True)
    torch.testing.assert_close(first.grad, pull / first.numel())


@pytest.mark.parametrize("exclusive", [True, False])
def test_cps_each_learns_the_decisions_of_the_other(exclusive):
    trainer = bare_trainer(exclusive, deep_supervision=False)
    trainer.__class__ = nnUNetTrainerCPS
    trainer.config = CPSSettings()
    trainer.current_epoch, trainer.num_epochs, trainer.iteration_in_epoch = 10, 10, 0
    trainer.num_iterations_per_epoch = 10
    trainer.loss_with_ignore = loss_with_ignore_label(trainer)
    generator = torch.Generator().manual_seed(0)
    images, weak = (torch.randn(2, 1, 8, 8, generator=generator) for _ in range(2))
    heads = trainer.label_manager.num_segmentation_heads
    first, second = (torch.randn(4, heads, 8, 8, generator=generator) for _ in range(2))
    if exclusive:
        label = torch.randint(0, heads, (2, 1, 8, 8), generator=generator)
    else:
        label = torch.rand(2, heads, 8, 8, generator=generator) > 0.5
    trainer.labelled_batch = lambda batch: (images, [label])
    trainer.unlabelled_batch = lambda like: UnlabelledBatch(weak, (), [])
    gradients, steps = [], []
    trainer.student_logits = lambda patches: [first]
    trainer.backward, trainer.take_step = gradients.append, lambda: steps.append(len(gradients))
    trainer.second = SimpleNamespace(
        student_logits=lambda patches: [second],
        backward=gradients.append,
        take_step=trainer.take_step,
    )
    trainer.update_teacher = lambda: None
    trainer.finish_step = lambda **losses: losses
    report = trainer.train_step({})
    for own, other, loss in ((first, second, gradients[0]), (second, first, gradients[1])):
        decided = other[2:].argmax(1, True) if exclusive else other[2:] > 0
        expected = trainer.loss(own[:2], label) + trainer.loss(own[2:], decided)
        torch.testing.assert_close(loss, expected)
    assert report["loss"] is gradients[0]
    assert steps == [2, 2], "no network takes a step before both gradients are known"
