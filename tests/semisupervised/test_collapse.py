"""Pseudo-labels of one class only are said once, and the plot shows them."""

from pathlib import Path

import numpy as np
import torch
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised import log
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher


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


def test_one_class_alone_is_told_from_almost_one_and_from_none():
    assert log.the_only_class(np.array([0, 1, 0])) == 1
    assert log.the_only_class(np.array([0.001, 0.999, 0])) is None
    assert log.the_only_class(np.zeros(3)) is None, "warm-up"
    assert log.the_only_class(np.array([0, 1.0, 1.0])) == 1, "two regions, everywhere"
    assert log.the_only_class(np.array([0, 1.0, 0.4])) is None, "a region that fills the patch"
