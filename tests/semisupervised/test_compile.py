"""What torch.compile makes of a training: nothing is compiled again within a stage."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from training import make_trainer, tiny

from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


@pytest.fixture
def compiled_without_code(monkeypatch):
    """As on a GPU, but graphs run as they are: generating code takes minutes on a CPU."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what: compile_(what, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def test_after_the_first_epoch_of_a_stage_nothing_is_compiled(
    prepared, compiled_without_code, monkeypatch
):
    trainer_class = tiny(nnUNetTrainerPLGCL, epochs=5, iterations=1)
    monkeypatch.setattr(trainer_class, "_do_i_compile", lambda self: True, raising=False)
    trainer = make_trainer(trainer_class, prepared, {"warmup_fraction": 0.4})
    graphs = []

    def on_epoch_end() -> None:
        type(trainer).on_epoch_end(trainer)
        graphs.append(counters["stats"]["unique_graphs"])

    trainer.on_epoch_end = on_epoch_end
    trainer.perform_actual_validation = lambda *_: None
    trainer.run_training()
    of_warmup, after_it, of_second_stage, *rest = graphs
    assert of_warmup == after_it < of_second_stage
    assert rest == [of_second_stage] * 2
    of_networks, of_contrast = 4, 4  # statistics, embeddings of student and teacher, loss
    assert of_warmup == of_networks + of_contrast
    assert not counters["graph_break"]
