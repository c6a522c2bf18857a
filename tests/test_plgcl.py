"""What ``nnUNetTrainerPLGCL`` adds to the poster."""

from pathlib import Path

import pytest
import scipy.ndimage
import torch
from bare import bare_trainer
from training import assert_equal_to_the_bit, keep_latest, make_trainer, tiny

from nnunetv2_plgcl.semisupervised.losses import label_manager_with_ignore
from nnunetv2_plgcl.semisupervised.step import UnlabelledBatch
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import PLGCLSettings, nnUNetTrainerPLGCL
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
            ignore = trainer.pseudo_label_manager.ignore_label
            assert not (label[image] == ignore).any() or (label[image] != 0).all()
            close = torch.from_numpy(scipy.ndimage.binary_dilation(foreground, box))
            assert torch.equal(after[image][:, close], before[image][:, close])
            away = after[image][:, ~close]
            assert (away[0] == 1).all() and (away[1:] == 0).all()
            changed += int((before[image] != after[image]).any())
    assert changed


@pytest.mark.parametrize("exclusive", [True, False])
def test_where_the_teacher_found_nothing_in_a_volume_nothing_is_removed(exclusive):
    trainer = bare_trainer(exclusive)
    trainer.__class__ = nnUNetTrainerPLGCL
    trainer.config = PLGCLSettings()
    trainer.keeps_largest = True
    trainer.pseudo_label_manager = label_manager_with_ignore(trainer)
    trainer.configuration_manager.configuration["spacing"] = [1.0, 1.0]
    classes = trainer.label_manager.num_segmentation_heads
    maps = torch.rand(2, classes, 16, 16)
    trainer.pseudo_label = lambda weak: maps
    missed = torch.zeros(2, 1, 16, 16, dtype=torch.int16)
    missed[1] = trainer.pseudo_label_manager.ignore_label  # as stored; the first is far away
    if not exclusive:
        missed = torch.cat((torch.zeros(2, classes, 16, 16), missed > 0), 1)
    after = trainer.pseudo_label_of(UnlabelledBatch(maps, (maps,), [missed]))
    assert torch.equal(after[1], maps[1])
    assert (after[0, int(exclusive) :] == 0).all()


@pytest.mark.parametrize("settings", [{"component_filter": "none"}, {"warmup_fraction": 0.0}])
def test_where_no_component_is_removed_it_is_the_poster(prepared, settings):
    memory = {"memory_length": 64, "memory_draws": 0}
    results = []
    for trainer_class in (nnUNetTrainerPLGCL, nnUNetTrainerPLGCL_poster):
        given = {**memory, **settings, "warmup_copy_paste": False}
        trainer = make_trainer(tiny(trainer_class, 2, 2), prepared, given)
        trainer.embeds_every_window = True  # as the poster's, for the last bit
        trainer.run_training()
        assert not (Path(trainer.output_folder) / "pseudo_labels").exists()
        results.append(trainer.student.state_dict())
    assert_equal_to_the_bit(*results)


@pytest.mark.parametrize("settings", [{}, {"warmup_copy_paste": False}])
def test_in_warm_up_alone_a_box_of_another_labelled_patch_lies_in_each(prepared, settings):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 3, 1), prepared, settings)
    trainer.initialize()
    edge = torch.arange(4.0).view(4, 1, 1, 1)
    batch = {
        "data": edge.expand(4, 1, 12, 12),
        "target": [edge.expand(4, 1, 12, 12), edge.expand(4, 1, 6, 6)],
        "keys": list("abcd"),
    }
    for trainer.current_epoch in range(3):  # the first is warm-up
        images, targets = trainer.labelled_batch(batch)
        if settings or not trainer.is_warmup:
            assert torch.equal(images, batch["data"])
            assert all(map(torch.equal, targets, batch["target"]))
            continue
        assert torch.equal(images, targets[0])
        for index in range(4):
            own, pasted = images[index] == index, images[index] == (index - 1) % 4
            assert (own | pasted).all() and pasted.sum() == 8 * 8
            rows, columns = torch.nonzero(pasted[0], as_tuple=True)
            assert rows.max() - rows.min() == columns.max() - columns.min() == 7  # one box
            assert 0 < (targets[1][index] != index).sum() <= 5 * 5


def test_continued_inside_the_second_stage_it_ends_in_the_same_bits(prepared):
    settings = {"refreshes": 2, "island_share": 0.5}
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared, settings)
    kept = prepared.base / "kept.pth"
    keep_latest(trainer, 2, kept)
    trainer.run_training()
    continued = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared, settings)
    continued.load_checkpoint(str(kept))
    continued.run_training()
    for one in ("student", "teacher", "head", "positives", "negatives"):
        assert_equal_to_the_bit(
            getattr(trainer, one).state_dict(), getattr(continued, one).state_dict()
        )
