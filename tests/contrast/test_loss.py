from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunetv2_plgcl.contrast.loss import closed_form_info_nce, sampled_info_nce
from nnunetv2_plgcl.contrast.memory import ClassMemory
from tests.oracles import contrast as oracle


def _unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def _sampled_arguments(
    seed: int, dtype: torch.dtype = torch.float64, b: int = 2, k: int = 3, n: int = 4, e: int = 5
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "anchors": _unit(b, k, n, e, dtype=dtype),
        "anchor_mask": torch.rand(b, k, n) < 0.7,
        "positives": _unit(k, 6, e, dtype=dtype),
        "positive_mask": torch.rand(k, 6) < 0.4,
        "negatives": _unit(k, 7, e, dtype=dtype),
        "negative_mask": torch.rand(k, 7) < 0.4,
    }


def _moments(k: int, e: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    factor = torch.randn(k, e, e, dtype=dtype) / e
    return _unit(k, e, dtype=dtype) * 0.8, factor @ factor.mT


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.05, 0.2, 1.0]))
def test_sampled_loss_equals_a_loop_over_pairs(seed, temperature):
    arguments = _sampled_arguments(seed)
    loss = sampled_info_nce(**arguments, temperature=temperature)
    expected = oracle.info_nce(**arguments, temperature=temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.2, 1.0]),
    scale=st.sampled_from([0.0, 1.0, 4.0]),
    psi=st.sampled_from([1.0, 3.0, 4096.0]),
)
def test_closed_form_equals_a_loop_over_classes(seed, temperature, scale, psi):
    torch.manual_seed(seed)
    anchors, mask = _unit(2, 4, 3, 5), torch.rand(2, 4, 3) < 0.7
    mean, covariance = _moments(4, 5)
    present = torch.rand(4) < 0.6
    rest = (mean, covariance, present, temperature, scale, psi)
    loss = closed_form_info_nce(anchors, mask, *rest)
    expected = oracle.closed_form(anchors, mask, *rest)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_a_negative_of_weight_two_counts_as_two():
    arguments = _sampled_arguments(0)
    twice = {
        **arguments,
        "negatives": arguments["negatives"].repeat(1, 2, 1),
        "negative_mask": arguments["negative_mask"].repeat(1, 2),
    }
    weight = torch.full((3, 7), 2.0)
    loss = sampled_info_nce(**arguments, temperature=0.2, negative_weight=weight)
    assert loss.item() == pytest.approx(oracle.info_nce(**twice, temperature=0.2), rel=1e-10)


def test_leaving_out_what_cannot_be_an_anchor_changes_no_bit():
    arguments = _sampled_arguments(0, torch.float32, b=4, n=8)
    arguments["anchor_mask"][:, :, 4:] = False
    results = []
    for most in (None, 16):
        arguments["anchors"] = arguments["anchors"].detach().requires_grad_()
        loss = sampled_info_nce(**arguments, temperature=0.2, most_anchors=most)
        loss.backward()
        results.append((loss, arguments["anchors"].grad))
    assert all(map(torch.equal, *results))


def test_a_draw_from_the_memory_estimates_the_loss_and_gradient_of_the_whole():
    """Its error is chance: the mean over draws comes near by the square root of their number."""
    torch.manual_seed(0)
    classes, anchors_of_each, draws = 3, 8, 200
    centres = _unit(classes, 16)

    def around(number: int, of: list[int]) -> Tensor:
        noise = torch.randn(number, classes, 4, 16, dtype=torch.float64)
        return F.normalize(centres[of][:, None] + noise / 4, dim=-1)

    memories = [ClassMemory(classes, 512, 16, torch.float64) for _ in range(2)]
    for memory, of in zip(memories, ([0, 1, 2], [1, 2, 0]), strict=True):
        memory.enqueue(around(110, of), torch.rand(110, classes, 4) < 0.9)
    anchors = around(anchors_of_each // 4, [0, 1, 2]).requires_grad_()
    mask = torch.ones(anchors.shape[:3], dtype=torch.bool)

    def loss_and_gradient(number: int | None) -> tuple[Tensor, Tensor]:
        positives, negatives = (memory.recall(number) for memory in memories)
        loss = sampled_info_nce(
            anchors, mask, positives.entries, positives.filled, negatives.entries,
            negatives.filled, 0.2, negatives.weight,
        )  # fmt: skip
        return loss.detach(), torch.autograd.grad(loss, anchors)[0]

    loss, gradient = loss_and_gradient(None)
    estimates = [loss_and_gradient(64) for _ in range(draws)]
    losses = torch.stack([of_draw for of_draw, _ in estimates])
    assert 0.001 < losses.std() / loss < 0.05
    assert abs(losses.mean() - loss) < 4 * losses.std() / math.sqrt(draws)
    gradients = torch.stack([of_draw for _, of_draw in estimates])
    error = (gradients - gradient).flatten(1).norm(dim=1).mean()
    assert error < 0.3 * gradient.norm()
    assert (gradients.mean(0) - gradient).norm() < 2 * error / math.sqrt(draws)


def test_sampled_loss_of_points_on_the_unit_circle():
    """Positive at 60 degrees, negatives at 90 and 180: worked out by hand."""
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0], dtype=torch.float64).deg2rad()
    points = torch.stack((angles.cos(), angles.sin()), -1)
    loss = sampled_info_nce(
        points[None, None, :1],
        torch.ones(1, 1, 1, dtype=torch.bool),
        points[None, 1:2],
        torch.ones(1, 1, dtype=torch.bool),
        points[None, 2:],
        torch.ones(1, 2, dtype=torch.bool),
        temperature=0.5,
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-3)), rel=1e-12)


def test_closed_form_without_spread_is_the_sampled_form_with_the_means():
    torch.manual_seed(0)
    k, e = 4, 6
    anchors, mask = _unit(2, k, 3, e), torch.ones(2, k, 3, dtype=torch.bool)
    mean = _unit(k, e)
    present = torch.tensor([True, True, False, True])
    others = present & ~torch.eye(k, dtype=torch.bool)
    sampled = sampled_info_nce(
        anchors, mask, mean[:, None], present[:, None], mean.expand(k, k, e), others, 0.2
    )
    zero = torch.zeros(k, e, e, dtype=torch.float64)
    closed = closed_form_info_nce(anchors, mask, mean, zero, present, 0.2, 1.0, 2.0)
    torch.testing.assert_close(closed, sampled, rtol=1e-12, atol=0)


def test_closed_form_bounds_the_monte_carlo_mean_from_above():
    """Gaussian embeddings; two negatives per other class, so psi = 4."""
    torch.manual_seed(0)
    k, e, draws, per_class, temperature = 3, 4, 20_000, 2, 0.5
    mean, covariance = _moments(k, e)
    anchors, mask = _unit(1, k, 1, e), torch.ones(1, k, 1, dtype=torch.bool)
    closed = closed_form_info_nce(
        anchors, mask, mean, covariance, torch.ones(k, dtype=torch.bool), temperature, 1.0, 4.0
    ).item()
    root = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(e))

    def sample(j: int, number: int) -> Tensor:
        return mean[j] + torch.randn(draws, number, e, dtype=torch.float64) @ root[j].T

    losses = torch.zeros(draws, dtype=torch.float64)
    for j in range(k):
        f = anchors[0, j, 0]
        positive = sample(j, 1) @ f / temperature
        negative = [sample(i, per_class) @ f / temperature for i in range(k) if i != j]
        both = torch.cat((positive, *negative), 1)
        losses += (both.logsumexp(1) - positive[:, 0]) / k
    error = losses.std().item() / math.sqrt(draws)
    assert closed > losses.mean().item() - 3 * error
    assert closed < losses.mean().item() + 1  # and not idly so


def test_closed_form_is_the_limit_of_many_negatives_without_spread_of_positives():
    """The bound is tight where only negatives spread and there are very many."""
    torch.manual_seed(0)
    e, draws, temperature = 4, 400_000, 0.5
    mean, covariance = _moments(2, e)
    covariance[0] = 0
    anchors = _unit(1, 2, 1, e)
    mask = torch.tensor([[[True], [False]]])
    closed = closed_form_info_nce(
        anchors, mask, mean, covariance, torch.ones(2, dtype=torch.bool), temperature, 1.0, 50.0
    )
    f = anchors[0, 0, 0]
    root = torch.linalg.cholesky(covariance[1])
    negatives = mean[1] + torch.randn(draws, e, dtype=torch.float64) @ root.T
    against = 50 * (negatives @ f / temperature).exp().mean()
    positive = (mean[0] @ f / temperature).exp()
    assert closed.item() == pytest.approx(-(positive / (positive + against)).log().item(), rel=0.01)


def test_both_losses_pass_gradcheck_in_float64():
    arguments = _sampled_arguments(3, b=1, n=2, e=5)
    arguments["positive_mask"][0] = False  # one class without positives
    anchors = arguments.pop("anchors").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: sampled_info_nce(a, **arguments, temperature=0.2), anchors
    )
    mean, covariance = _moments(3, 5)
    present = torch.tensor([True, False, True])
    mask = arguments["anchor_mask"]
    assert torch.autograd.gradcheck(
        lambda a: closed_form_info_nce(a, mask, mean, covariance, present, 0.5, 4.0, 8.0), anchors
    )


def _assert_zero_with_zero_gradient(loss: Tensor, anchors: Tensor) -> None:
    assert loss.item() == 0
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss.backward()
    assert anchors.grad is not None and (anchors.grad == 0).all()


@pytest.mark.parametrize("empty", ["anchor_mask", "positive_mask", "negative_mask"])
def test_sampled_loss_without_anything_to_compare_is_exactly_zero(empty):
    arguments = _sampled_arguments(0, torch.float32)
    arguments[empty] = torch.zeros_like(arguments[empty])
    arguments["anchors"].requires_grad_()
    loss = sampled_info_nce(**arguments, temperature=0.01)
    _assert_zero_with_zero_gradient(loss, arguments["anchors"])


@pytest.mark.parametrize("present", [[False] * 3, [False, True, False]])
def test_closed_form_with_at_most_one_class_present_is_exactly_zero(present):
    anchors = _unit(2, 3, 2, 4, dtype=torch.float32).requires_grad_()
    mean, covariance = _moments(3, 4, torch.float32)
    mask = torch.ones(2, 3, 2, dtype=torch.bool)
    loss = closed_form_info_nce(
        anchors, mask, mean, covariance, torch.tensor(present), 0.01, 4.0, 4096.0
    )
    _assert_zero_with_zero_gradient(loss, anchors)


def test_masked_anchors_have_no_say_even_as_nan():
    arguments = _sampled_arguments(1)
    clean = sampled_info_nce(**arguments, temperature=0.2)
    mask = arguments["anchor_mask"]
    dirty = arguments["anchors"].masked_fill(~mask[..., None], math.nan).requires_grad_()
    loss = sampled_info_nce(**{**arguments, "anchors": dirty}, temperature=0.2)
    assert loss.item() == clean.item()
    loss.backward()
    assert (dirty.grad[~mask] == 0).all() and dirty.grad.isfinite().all()

    mean, covariance = _moments(3, 5)
    rest = (mask, mean, covariance, torch.ones(3, dtype=torch.bool), 0.2, 1.0, 3.0)
    dirty.grad = None
    loss = closed_form_info_nce(dirty, *rest)
    assert loss.item() == closed_form_info_nce(arguments["anchors"], *rest).item()
    loss.backward()
    assert (dirty.grad[~mask] == 0).all() and dirty.grad.isfinite().all()


def test_masked_positives_and_negatives_have_no_say():
    arguments = _sampled_arguments(2)
    clean = sampled_info_nce(**arguments, temperature=0.2)
    for name in ("positives", "negatives"):
        mask = arguments[f"{name[:-1]}_mask"]
        arguments[name] = torch.where(mask[..., None], arguments[name], _unit(3, 1, 5))
    assert sampled_info_nce(**arguments, temperature=0.2).item() == clean.item()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_temperature_and_identical_embeddings_stay_finite(sign, dtype):
    one = _unit(1, dtype=torch.float32).expand(8).to(dtype) / math.sqrt(8)
    anchors = one.expand(2, 3, 4, 8).clone().requires_grad_()
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    memory, full = sign * one.expand(3, 16, 8), torch.ones(3, 16, dtype=torch.bool)
    loss = sampled_info_nce(anchors, mask, memory, full, -memory, full, 0.01)
    loss.backward()
    assert loss.isfinite() and anchors.grad.isfinite().all()
    assert loss.item() == pytest.approx(0 if sign > 0 else 200 + math.log(16), abs=0.5)

    anchors.grad = None
    mean, covariance = memory[:, 0].float(), torch.eye(8).expand(3, 8, 8)
    present = torch.ones(3, dtype=torch.bool)
    loss = closed_form_info_nce(anchors, mask, mean, covariance, present, 0.01, 4.0, 4096.0)
    loss.backward()
    assert loss.isfinite() and anchors.grad.isfinite().all()


def test_identical_embeddings_cost_the_log_of_their_number():
    one = _unit(1, 5).expand(2, 16, 5)
    full = torch.ones(2, 16, dtype=torch.bool)
    loss = sampled_info_nce(one[None, :, :3], full[None, :, :3], one, full, one, full, 0.01)
    assert loss.item() == pytest.approx(math.log(17))


def test_large_half_precision_memories_give_the_float32_loss():
    torch.manual_seed(0)
    memory = _unit(2, 2, 10_000, 16, dtype=torch.float32)
    anchors = _unit(1, 2, 2, 16, dtype=torch.float32).requires_grad_()
    mask, full = torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(2, 10_000, dtype=torch.bool)
    whole = sampled_info_nce(anchors, mask, memory[0], full, memory[1], full, 0.01)
    half = sampled_info_nce(anchors, mask, memory[0].half(), full, memory[1].half(), full, 0.01)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=1e-3)
    half.backward()
    assert anchors.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision():
    arguments = _sampled_arguments(5, torch.float32)
    mean, covariance = _moments(3, 5, torch.float32)
    present = torch.ones(3, dtype=torch.bool)
    rest = (arguments["anchor_mask"], mean, covariance, present, 0.2, 4.0, 8.0)
    sampled = sampled_info_nce(**arguments, temperature=0.2)
    closed = closed_form_info_nce(arguments["anchors"], *rest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sampled_info_nce(**arguments, temperature=0.2), sampled)
        assert torch.equal(closed_form_info_nce(arguments["anchors"], *rest), closed)


def test_float64_is_not_lowered():
    arguments = _sampled_arguments(5)
    assert sampled_info_nce(**arguments, temperature=0.2).dtype == torch.float64


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(3)), seed=st.integers(0, 100))
def test_permuting_classes_changes_nothing(order, seed):
    arguments = _sampled_arguments(seed)
    index = torch.tensor(order)
    permuted = {
        name: value[:, index] if name.startswith("anchor") else value[index]
        for name, value in arguments.items()
    }
    torch.testing.assert_close(
        sampled_info_nce(**permuted, temperature=0.2),
        sampled_info_nce(**arguments, temperature=0.2),
    )


def test_following_the_gradient_separates_positives_from_negatives():
    torch.manual_seed(0)
    anchors = _unit(1, 1, 4, 8)
    positive, negative = _unit(1, 1, 8), _unit(1, 1, 8)
    mask, one = torch.ones(1, 1, 4, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    before = (anchors @ positive[0, 0] - anchors @ negative[0, 0]).mean()
    for _ in range(20):
        anchors = anchors.detach().requires_grad_()
        sampled_info_nce(anchors, mask, positive, one, negative, one, 0.2).backward()
        anchors = F.normalize(anchors - 0.5 * anchors.grad, dim=-1)
    assert (anchors @ positive[0, 0] - anchors @ negative[0, 0]).mean() > before + 0.5


@pytest.mark.parametrize(
    ("temperature", "scale", "psi", "message"),
    [
        (0.0, 1.0, 1.0, "temperature must be above 0, got 0.0"),
        (math.nan, 1.0, 1.0, "temperature"),
        (0.2, -1.0, 1.0, "covariance_scale must be at least 0, got -1.0"),
        (0.2, 1.0, 0.0, "num_negatives must be above 0, got 0.0"),
    ],
)
def test_numbers_out_of_range_are_named(temperature, scale, psi, message):
    mean, covariance = _moments(2, 3)
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        closed_form_info_nce(
            _unit(1, 2, 1, 3),
            mask,
            mean,
            covariance,
            torch.ones(2, dtype=torch.bool),
            temperature,
            scale,
            psi,
        )
