"""Pseudo-labels of one class only are said once, and the plot shows them."""

from pathlib import Path

import numpy as np
import torch
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised import log, volumes
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def test_a_teacher_that_collapsed_is_told_once_and_logged(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerMeanTeacher, 4, 2), prepared)

    def collapsed(weak):
        maps = torch.zeros(len(weak), 4, *weak.shape[2:])
        maps[:, 2] = 1 if trainer.current_epoch >= 2 else 0
        maps[:, 0] += 0.5
        maps[0, 3, :, 5] = 2 if trainer.current_epoch < 2 else 0
        return maps.log()

    trainer.initialize()
    trainer._run_teacher = collapsed
    trainer.run_training()
    text = Path(trainer.log_file).read_text()
    name = [n for n, value in prepared.dataset_json()["labels"].items() if value == 2]
    assert text.count("all pseudo-labels of epoch") == 1
    assert f"all pseudo-labels of epoch 2 are {name[0]}" in text
    series = trainer.logger.local_logger.my_fantastic_logging[log.LARGEST_CLASS]
    np.testing.assert_allclose(series, [0, 1 - 1 / 96, 1, 1], rtol=1e-5)
    assert log.LARGEST_CLASS in log.SHARES, "what progress.png draws"

    continued = make_trainer(tiny(nnUNetTrainerMeanTeacher, 4, 2), prepared)
    continued.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    assert continued.said_collapsed, "--c does not say it again"


def test_what_is_looked_at_is_what_the_student_learns_from(prepared, monkeypatch):
    """PLGCL turns to background what lies away from its volume's foreground: here everything."""

    def empty(logits, *_):
        return volumes.VolumeLabel(np.zeros(logits.shape[1:], np.int8), np.zeros((0, 4), int))

    monkeypatch.setattr(volumes, "volume_label", empty)
    settings = {"warmup_fraction": 0.5, "component_filter": "largest"}
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 2), prepared, settings)
    trainer.run_training()
    series = trainer.logger.local_logger.my_fantastic_logging[log.LARGEST_CLASS]
    assert series == [0, 1]
    assert "all pseudo-labels of epoch 1 are background" in Path(trainer.log_file).read_text()


def test_one_class_alone_is_told_from_almost_one_and_from_none():
    def only(*shares):
        return log.the_only_class(np.array(shares, dtype=float))

    assert only(0, 1, 0, 1) == 1
    assert only(0.001, 0.999, 0, 1) is None
    assert only(0, 0, 0, 0) is None, "warm-up, or all ignored"
    assert only(0, 0, 0.6, 0.6) == 2, "as far as voxels are not ignored"
    assert only(0, 0, 0.4, 0.4) is None, "where most are"
    assert only(0, 1, 1, 1) == 1, "two regions, everywhere"
    assert only(0, 1, 0.4, 1) is None, "a region that fills the patch"


def test_a_step_that_ignores_everything_hides_no_collapse():
    steps = [np.array([1.0, 0, 0, 1]), np.array([0.0, 0, 0, 0])]
    assert log.the_only_class(np.mean(steps, 0)) == 0
