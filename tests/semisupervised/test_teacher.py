import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunetv2_plgcl.semisupervised.teacher import EMATeacher, swap_weights


def small_unet() -> nn.Module:
    """A U-Net whose state dict names the encoder twice, as nnU-Net's does."""
    return PlainConvUNet(
        1, 2, [4, 8], nn.Conv2d, 3, [1, 2], 1, 3, 1, norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.999])
def test_teacher_is_the_ramped_exponential_moving_average(decay):
    student = small_unet()
    teacher = EMATeacher(student, decay)
    expected = None
    for step in range(6):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        alpha = min(decay, (1 + step) / (10 + step)) if step else 0.0
        assert teacher.decay == pytest.approx(alpha)
        teacher.update_parameters(student)
        now = {name: value.double() for name, value in student.named_parameters()}
        if expected is None:
            expected = now
        expected = {n: alpha * expected[n] + (1 - alpha) * now[n] for n in now}
    for name, value in teacher.module.named_parameters():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)


def test_aliased_parameters_are_averaged_once():
    student = small_unet()
    assert len(student.state_dict()) > len(list(student.parameters()))
    teacher = EMATeacher(student, 0.5)
    for _ in range(20):  # past the ramp
        teacher.update_parameters(student)
    before = copy.deepcopy(dict(teacher.module.named_parameters()))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update_parameters(student)
    for name, value in teacher.module.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.5)


def test_teacher_has_no_gradient_and_leaves_the_student_alone():
    student = small_unet()
    teacher = EMATeacher(student, 0.9)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.training and not teacher.training


def test_two_teachers_that_take_turns_average_each_its_own_updates():
    """As in AD-MT: the second sees the student only when it is its turn."""
    torch.manual_seed(0)
    student = small_unet()
    teachers = EMATeacher(student, 0.7), EMATeacher(student, 0.7)
    expected = [None, None]
    for step in range(9):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        turn = step // 2 % 2
        own = [0, 1, 0, 1, 2, 3, 2, 3, 4][step]  # updates of this teacher so far
        alpha = min(0.7, (1 + own) / (10 + own)) if own else 0.0
        assert teachers[turn].decay == pytest.approx(alpha)
        teachers[turn].update_parameters(student)
        now = {name: value.double() for name, value in student.named_parameters()}
        mean = expected[turn] or now
        expected[turn] = {n: alpha * mean[n] + (1 - alpha) * now[n] for n in now}
    for teacher, mean in zip(teachers, expected, strict=True):
        for name, value in teacher.module.named_parameters():
            torch.testing.assert_close(value.double(), mean[name], rtol=1e-4, atol=1e-5)


def test_swapping_weights_exchanges_outputs_and_twice_restores():
    a, b = small_unet(), small_unet()
    optimiser = torch.optim.SGD(a.parameters(), lr=0.1)
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        of_a, of_b = a(x), b(x)
        swap_weights(a, b)
        torch.testing.assert_close(a(x), of_b, rtol=0, atol=0)
        torch.testing.assert_close(b(x), of_a, rtol=0, atol=0)
        swap_weights(a, b)
        torch.testing.assert_close(a(x), of_a, rtol=0, atol=0)
    a(x).sum().backward()
    optimiser.step()
    with torch.no_grad():
        assert not torch.equal(a(x), of_a), "the optimiser must still hold the student's parameters"


def test_swapping_different_networks_is_refused():
    with pytest.raises(ValueError, match="differ in structure"):
        swap_weights(nn.Linear(2, 2), nn.Linear(2, 3))
