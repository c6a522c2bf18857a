"""What a step costs, in operations instead of seconds, so that a busy machine changes nothing."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from training import make_trainer, tiny

from nnunetv2_plgcl.contrast.embedding import FeatureEmbedder, ProjectionHead
from nnunetv2_plgcl.contrast.guidance import EntropyGuide, draw_classes, of_classes
from nnunetv2_plgcl.contrast.loss import sampled_info_nce
from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.patches import window_statistics
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

SCRIPTS = Path(__file__).parents[1] / "scripts"
STUDENT = "network of 4 x 1 x 48 x 48 forward and backward"
TEACHER = "teacher of 2 x 1 x 48 x 48"
KEYS = [
    "teacher.encoder.stages.0 of 2 x 1 x 48 x 48",
    "teacher.encoder.stages.1 of 2 x 8 x 48 x 48",
]


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.partition(".")[0] == "step"]:
        del sys.modules[name]


class Operations(TorchDispatchMode):
    """Counts what is dispatched to the device: on a GPU about as many launches."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += not function.is_view
        return function(*args, **(kwargs or {}))


def _in_second_stage(trainer_class: type, prepared):
    trainer = make_trainer(tiny(trainer_class), prepared)
    trainer._check_data = lambda: None
    trainer.on_train_start()
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    trainer.batches = itertools.repeat(next(trainer.dataloader_train))
    trainer.dataloader_unlabelled = itertools.repeat(next(trainer.dataloader_unlabelled))
    trainer.train_step(next(trainer.batches))  # the optimiser makes its state
    return trainer


def _cost(call) -> tuple[int, int]:
    """Multiplications and additions of products of matrices and convolutions; operations."""
    with FlopCounterMode(display=False) as flops, Operations() as operations:
        call()
    return flops.get_total_flops(), operations.number


def test_a_step_makes_the_passes_it_needs_and_little_else(prepared, scripts):
    from step.floor import Floor
    from step.memory import bytes_held

    plgcl = _in_second_stage(nnUNetTrainerPLGCL, prepared)
    mean_teacher = _in_second_stage(nnUNetTrainerMeanTeacher, prepared)
    costs = {}
    for trainer, passes in ((mean_teacher, []), (plgcl, KEYS)):
        floor = Floor(trainer, compiled=False)
        assert floor.passes == [TEACHER, STUDENT, *passes]
        flops, operations = _cost(lambda of=trainer: of.train_step(next(of.batches)))
        floor_flops, _ = _cost(floor)
        costs[type(trainer)] = flops / floor_flops, operations
        held = bytes_held(trainer)
        assert held["for the backward pass"] > 1e6 and held["state"] > 1e5
    (of_mean_teacher, its_operations), (of_plgcl, operations) = costs.values()
    assert of_mean_teacher == pytest.approx(1, abs=5e-3)
    assert of_plgcl < 1.19  # the network is tiny: eight channels
    assert operations - its_operations < 480


def _contrast(classes: int, anchors: int, length: int, edge: int, most_classes: int | None = None):
    torch.manual_seed(0)
    image = torch.randn(2, 1, edge, edge)
    features = torch.randn(2, 8, edge // 4, edge // 4, requires_grad=True)
    confidence = torch.randn(2, classes, edge, edge).softmax(1)
    embed = FeatureEmbedder(ProjectionHead(8, 16))
    memories = [ClassMemory(classes, length, 16) for _ in range(2)]

    def step() -> None:
        drawn = draw_classes(confidence, most_classes)
        maps = of_classes(drawn, confidence)
        windows = EntropyGuide(balanced=True)(window_statistics(maps, edge // 4), 2 * anchors)
        embedded = embed(image, [features], maps, windows)
        for memory, side in zip(memories, (windows.positive, ~windows.positive), strict=True):
            memory.enqueue(embedded.detach(), windows.valid & side, drawn)
        positives, negatives = (memory.recall(32, classes=drawn) for memory in memories)
        sampled_info_nce(
            embedded, windows.valid & windows.positive, positives.entries, positives.filled,
            negatives.entries, negatives.filled, 0.2, negatives.weight, 2 * anchors,
        ).backward()  # fmt: skip

    return step


BASE = {"classes": 4, "anchors": 2, "length": 128, "edge": 32}


@pytest.mark.parametrize(
    ("grows", "factor", "most"),
    [
        ({"classes": 16}, 4, 4),
        ({"anchors": 8}, 4, 4),
        ({"length": 1024}, 8, 1),  # as many are drawn as before
        ({"edge": 64}, 4, 8),  # pooling grows with the axis, too
    ],
)
def test_the_cost_of_contrast_grows_no_faster_than_what_it_depends_on(grows, factor, most):
    flops, operations = _cost(_contrast(**BASE))
    more_flops, more_operations = _cost(_contrast(**{**BASE, **grows}))
    assert more_flops <= 1.01 * most * flops
    assert more_operations == operations


def test_a_step_contrasts_as_many_classes_at_most_whatever_the_dataset_has():
    flops, operations = _cost(_contrast(**{**BASE, "classes": 16}, most_classes=8))
    more = _cost(_contrast(**{**BASE, "classes": 100}, most_classes=8))
    assert more == (flops, operations)


def test_the_benchmark_of_a_step_writes_its_ratios(prepared, scripts, tmp_path, monkeypatch):
    import benchmark_step

    monkeypatch.setenv("nnUNet_compile", "f")
    file = tmp_path / "step.json"
    monkeypatch.setattr("sys.argv", [
        "benchmark_step.py", "-d", "901", "-c", TINY, "--turns", "2", "--json", str(file),
        "--trace", str(tmp_path / "trace.json"),
    ])  # fmt: skip
    monkeypatch.setattr(benchmark_step, "EPOCH", 2)
    benchmark_step.main()
    result = json.loads(file.read_text())
    for name in ("nnUNetTrainer", "nnUNetTrainerMeanTeacher", "nnUNetTrainerPLGCL"):
        assert 0.3 < result["ratios"][f"{name}/floor"] < 10
        assert 0 < result["share of an epoch waiting for batches"][name] < 1
    assert result["passes of the floor"]["nnUNetTrainerPLGCL"] == [TEACHER, STUDENT, *KEYS]
    assert result["milliseconds of parts"]["nnUNetTrainerPLGCL"].keys() == {
        "labelled batch", "unlabelled batch", "EMA",
        "statistics", "draw", "embed", "memory", "loss",
    }  # fmt: skip
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_the_benchmark_of_the_start_waits_for_the_first_step(
    prepared, scripts, capsys, monkeypatch
):
    import benchmark_start

    monkeypatch.setenv("nnUNet_compile", "f")
    command = ["benchmark_start.py", "-d", "901", "-c", TINY, "--turns", "1", "-tr"]
    monkeypatch.setattr("sys.argv", [*command, "nnUNetTrainerPLGCL"])
    benchmark_start.main()
    name, seconds, more = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert name == "nnUNetTrainerPLGCL" and 0 < float(seconds) < 300 and float(more) == 0
    monkeypatch.setattr("sys.argv", [*command, "nnUNetTrainerPLGC"])
    with pytest.raises(SystemExit, match="(?s)nnUNetTrainerPLGC made no step:.*nnUNetTrainerPLGC"):
        benchmark_start.main()
