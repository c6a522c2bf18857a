"""What ``nnUNetTrainerPLGCL`` adds to the poster: pseudo-labels without islands."""

from pathlib import Path

import pytest
import scipy.ndimage
import torch
from training import assert_equal_to_the_bit, keep_latest, make_trainer, tiny

from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


def test_away_from_the_volumes_foreground_every_pseudo_label_is_background(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 3, 4), prepared, {"refreshes": 2})
    plain, cleaned, stored = [], [], []

    def pseudo_label(weak, teacher=None):
        maps = type(trainer).pseudo_label(trainer, weak, teacher)
        plain.append(maps)
        return maps

    def pseudo_label_of(unlabelled):
        maps = type(trainer).pseudo_label_of(trainer, unlabelled)
        cleaned.append(maps)
        stored.append(unlabelled.target[0])
        return maps

    trainer.pseudo_label, trainer.pseudo_label_of = pseudo_label, pseudo_label_of
    trainer.run_training()
    assert trainer.keeps_largest and trainer.margin == [4, 4]
    in_stage_2 = [maps for maps in zip(plain, cleaned, stored, strict=True) if len(maps[0])]
    assert len(in_stage_2) == 8
    changed = 0
    box = torch.ones(9, 9).numpy()
    for before, after, label in in_stage_2:
        for image in range(len(before)):
            foreground = (label[image, 0] > 0).numpy()
            close = torch.from_numpy(scipy.ndimage.binary_dilation(foreground, box))
            assert torch.equal(after[image][:, close], before[image][:, close])
            away = after[image][:, ~close]
            assert (away[0] == 1).all() and (away[1:] == 0).all()
            changed += int((before[image] != after[image]).any())
    assert changed


@pytest.mark.parametrize("settings", [{"component_filter": "none"}, {"warmup_fraction": 0.0}])
def test_where_no_component_is_removed_it_is_the_poster(prepared, settings):
    memory = {"memory_length": 64, "memory_draws": 0}
    results = []
    for trainer_class in (nnUNetTrainerPLGCL, nnUNetTrainerPLGCL_poster):
        trainer = make_trainer(tiny(trainer_class, 2, 2), prepared, {**memory, **settings})
        trainer.run_training()
        assert not (Path(trainer.output_folder) / "pseudo_labels").exists()
        results.append(trainer.student.state_dict())
    assert_equal_to_the_bit(*results)


def test_continued_inside_the_second_stage_it_ends_in_the_same_bits(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared, {"refreshes": 2})
    kept = prepared.base / "kept.pth"
    keep_latest(trainer, 2, kept)
    trainer.run_training()
    continued = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared, {"refreshes": 2})
    continued.load_checkpoint(str(kept))
    continued.run_training()
    for one in ("student", "teacher", "head", "positives", "negatives"):
        assert_equal_to_the_bit(
            getattr(trainer, one).state_dict(), getattr(continued, one).state_dict()
        )
