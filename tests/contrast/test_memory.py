from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunetv2_plgcl.contrast.memory import ClassMemory
from tests.oracles import contrast as oracle


def _numbered(*shape: int, start: int = 1) -> Tensor:
    """Distinct integers, exact in half precision up to 2,048."""
    count = torch.Size(shape).numel()
    return (torch.arange(start, start + count) % 2048).float().view(shape)


def _held(memory: ClassMemory) -> list[list[tuple[float, ...]]]:
    """What each class remembers, in no order."""
    return [
        sorted(tuple(row) for row in entries[filled].tolist())
        for entries, filled in zip(memory.entries(), memory.filled(), strict=True)
    ]


@settings(max_examples=80, deadline=None)
@given(
    classes=st.integers(1, 3),
    length=st.integers(1, 7),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    batches=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 8), st.integers(0, 10**6)), max_size=6
    ),
)
def test_memory_behaves_as_a_deque_per_class(classes, length, dtype, batches):
    memory = ClassMemory(classes, length, 2, dtype)
    reference = oracle.DequeMemory(classes, length)
    start = 1
    for images, windows, seed in batches:
        embeddings = _numbered(images, classes, windows, 2, start=start)
        start += embeddings.numel()
        generator = torch.Generator().manual_seed(seed)
        keep = torch.rand(images, classes, windows, generator=generator) < 0.6
        memory.enqueue(embeddings, keep)
        reference.enqueue(embeddings, keep)
        assert _held(memory) == [sorted(queue) for queue in reference.queues]
        assert memory.filled().sum(1).tolist() == [len(queue) for queue in reference.queues]
        assert (memory.entries()[~memory.filled()] == 0).all()


def test_of_more_than_fit_at_once_the_newest_stay_in_order_of_arrival():
    memory = ClassMemory(1, 4, 1)
    embeddings = torch.arange(12.0).view(3, 1, 4, 1)  # images 0 to 3, 4 to 7, 8 to 11
    keep = torch.ones(3, 1, 4, dtype=torch.bool)
    keep[2, 0, 1] = False
    memory.enqueue(embeddings, keep)
    assert sorted(memory.entries().flatten().tolist()) == [7, 8, 10, 11]
    memory.enqueue(torch.tensor([20.0]).view(1, 1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
    assert sorted(memory.entries().flatten().tolist()) == [8, 10, 11, 20]


def test_moments_equal_those_of_the_filled_entries():
    torch.manual_seed(0)
    memory = ClassMemory(3, 50, 4)
    embeddings = torch.randn(10, 3, 4, 4)
    keep = torch.rand(10, 3, 4) < 0.5
    keep[:, 1] = False
    memory.enqueue(embeddings, keep)
    mean, covariance = memory.moments()
    for k in (0, 2):
        rows = embeddings[:, k][keep[:, k]]
        torch.testing.assert_close(mean[k], rows.mean(0))
        torch.testing.assert_close(covariance[k], torch.cov(rows.T, correction=0))
    assert (mean[1] == 0).all() and (covariance[1] == 0).all()


def test_moments_are_float32_in_half_precision_and_under_autocast():
    torch.manual_seed(0)
    memory = ClassMemory(2, 300, 8, torch.float16)
    rows = torch.nn.functional.normalize(torch.randn(100, 2, 3, 8), dim=-1)
    memory.enqueue(rows, torch.ones(100, 2, 3, dtype=torch.bool))
    assert memory.entries().dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, covariance = memory.moments()
    assert mean.dtype == covariance.dtype == torch.float32
    expected = torch.cov(rows[:, 0].flatten(0, 1).half().float().T, correction=0)
    torch.testing.assert_close(covariance[0], expected, atol=1e-6, rtol=1e-5)


def test_state_dict_brings_back_the_memory_and_its_place():
    torch.manual_seed(0)
    one, two = ClassMemory(2, 5, 3), ClassMemory(2, 5, 3)
    keep = torch.ones(2, 2, 4, dtype=torch.bool)
    one.enqueue(torch.randn(2, 2, 4, 3), keep)
    two.load_state_dict(one.state_dict())
    later = torch.randn(1, 2, 2, 3)
    for memory in (one, two):
        memory.enqueue(later, keep[:1, :, :2])
    assert torch.equal(one.entries(), two.entries())
    assert torch.equal(one.filled(), two.filled())
    assert not list(one.parameters())


def test_embeddings_that_are_not_finite_are_refused():
    memory = ClassMemory(1, 8, 2)
    embeddings = torch.ones(1, 1, 4, 2)
    embeddings[0, 0, 1, 0] = float("nan")
    embeddings[0, 0, 2, 1] = float("inf")
    memory.enqueue(embeddings, torch.ones(1, 1, 4, dtype=torch.bool))
    assert memory.filled().sum() == 2
    assert memory.rows.isfinite().all()


def test_refused_embeddings_leave_no_trace():
    memory = ClassMemory(2, 3, 2)
    memory.enqueue(torch.full((2, 2, 5, 2), 7.0), torch.zeros(2, 2, 5, dtype=torch.bool))
    assert (memory.rows == 0).all() and not memory.filled().any()


def test_the_memory_carries_no_gradient():
    memory = ClassMemory(1, 3, 2)
    embeddings = torch.ones(1, 1, 2, 2, requires_grad=True)
    memory.enqueue(embeddings, torch.ones(1, 1, 2, dtype=torch.bool))
    assert not memory.entries().requires_grad
    assert not any(moment.requires_grad for moment in memory.moments())


def test_negatives_of_a_class_are_the_entries_of_the_others():
    memory = ClassMemory(3, 4, 1)
    embeddings = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1) + torch.arange(2.0).view(
        1, 1, 2, 1
    )
    keep = torch.tensor([[[True, True], [True, False], [True, True]]])
    memory.enqueue(embeddings, keep)
    remembered = memory.recall().of_other_classes()
    entries, mask = remembered.entries, remembered.filled
    assert entries.shape == (3, 12, 1) and mask.shape == (3, 12)
    assert [sorted(entries[k, mask[k], 0].tolist()) for k in range(3)] == [
        [20, 30, 31],
        [10, 11, 30, 31],
        [10, 11, 20],
    ]
    assert entries.data_ptr() == memory.rows.data_ptr()


def _three_classes(length: int = 50) -> ClassMemory:
    """37 entries of the first class, none of the second, more than fit of the third."""
    memory = ClassMemory(3, length, 1)
    keep = torch.zeros(12, 3, 10, dtype=torch.bool)
    keep[:4, 0], keep[:3, 0, 9], keep[:, 2] = True, False, True
    memory.enqueue(torch.rand(12, 3, 10, 1) + 1, keep)
    assert memory.filled().sum(1).tolist() == [37, 0, length]
    return memory


@pytest.mark.parametrize("number", [1, 8, 36, 40])
def test_a_draw_holds_every_entry_as_often_as_the_others_in_expectation(number):
    torch.manual_seed(0)
    memory, draws = _three_classes(), 2000
    seen = torch.zeros(3, 50)
    for _ in range(draws):
        drawn = memory.recall(number)
        assert drawn.entries.shape == (3, number, 1) and drawn.filled.sum(1).tolist() == [
            number, 0, number,
        ]  # fmt: skip
        for k in (0, 2):
            assert drawn.weight[k].tolist() == pytest.approx([len_of(memory, k) / number] * number)
            is_entry = drawn.entries[k] == memory.entries()[k, :, 0]
            assert (is_entry.sum(1) == 1).all()
            seen[k] += is_entry.sum(0)
    for k in (0, 2):
        held = len_of(memory, k)
        expected = draws * number / held
        assert (seen[k, :held] - expected).abs().max() < 5 * expected**0.5
        assert (seen[k, held:] == 0).all()


def len_of(memory: ClassMemory, k: int) -> int:
    return int(memory.filled()[k].sum())


def test_a_draw_as_large_as_the_memory_is_the_memory():
    memory = _three_classes()
    for number in (50, 1000, None):
        everything = memory.recall(number)
        assert everything.entries.data_ptr() == memory.rows.data_ptr()
        assert torch.equal(everything.filled, memory.filled()) and everything.weight is None


def test_a_draw_from_the_other_classes_keeps_what_each_entry_stands_for():
    drawn = _three_classes().recall(10)
    others = drawn.of_other_classes()
    assert torch.equal(others.entries[1], drawn.entries.flatten(0, 1))
    counts = (others.weight * others.filled).sum(1)
    torch.testing.assert_close(counts, torch.tensor([50.0, 87.0, 37.0]))


def test_some_classes_are_remembered_and_recalled_as_if_alone():
    memory, reference = ClassMemory(4, 5, 2), oracle.DequeMemory(4, 5)
    for step, classes in enumerate(([0, 2], [1, 2], [3], [0, 1, 2, 3], [2, 3])):
        keep = torch.rand(3, len(classes), 2, generator=torch.Generator().manual_seed(step)) < 0.7
        embeddings = _numbered(3, len(classes), 2, 2, start=1 + 50 * step)
        memory.enqueue(embeddings, keep, torch.tensor(classes))
        everywhere = torch.zeros(3, 4, 2, dtype=torch.bool)
        everywhere[:, classes] = keep
        numbers = torch.zeros(3, 4, 2, 2)
        numbers[:, classes] = embeddings
        reference.enqueue(numbers, everywhere)
        assert _held(memory) == [sorted(queue) for queue in reference.queues]
    some = torch.tensor([1, 3])
    assert torch.equal(memory.recall(None, classes=some).entries, memory.entries()[some])
    drawn = memory.recall(3, classes=some)
    for entries, k in zip(drawn.entries, some, strict=True):
        assert {tuple(row) for row in entries.tolist()} <= set(reference.queues[k])
    assert torch.equal(drawn.weight[:, 0], memory.filled()[some].sum(1) / 3)


@pytest.mark.parametrize(
    ("embeddings", "keep"),
    [((2, 3, 4, 5), (2, 3, 4)), ((2, 2, 4, 6), (2, 2, 4)), ((2, 2, 4, 5), (2, 4, 2))],
)
def test_shapes_that_do_not_fit_are_named(embeddings, keep):
    memory = ClassMemory(2, 3, 5)
    with pytest.raises(ValueError, match=r"Expected embeddings \(B, 2, N, 5\)"):
        memory.enqueue(torch.zeros(embeddings), torch.zeros(keep, dtype=torch.bool))


def test_a_memory_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 2, 0 and 128"):
        ClassMemory(2, 0)
