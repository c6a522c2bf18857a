"""Pseudo-labels of whole volumes: the label, its storage, and a training that serves them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from training import assert_equal_to_the_bit, keep_latest, make_trainer, tiny

from nnunetv2_plgcl.semisupervised import volumes
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerVolumePseudoLabels import (
    nnUNetTrainerVolumePseudoLabels,
)

LABELS = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "b": 2, "ignore": 3}, [1, 2])


def largest_by_scipy(mask):
    components, number = scipy.ndimage.label(mask, np.ones([3] * mask.ndim))
    sizes = [(components == i).sum() for i in range(1, number + 1)]
    return components == 1 + int(np.argmax(sizes))


@pytest.mark.parametrize("keep_largest", [True, False])
@pytest.mark.parametrize(("manager", "heads"), [(LABELS, 3), (REGIONS, 2)])
@pytest.mark.parametrize("shape", [(5, 12, 11), (1, 20, 18)])
def test_a_label_is_the_decision_without_islands_and_unsure_voxels(
    manager, heads, shape, keep_largest
):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(heads, *shape))
    logits = torch.from_numpy(
        3 * np.stack([scipy.ndimage.gaussian_filter(channel, 0.8) for channel in noise])
    )
    if manager.has_regions:  # little foreground, so that it lies apart
        logits -= 0.8
    else:
        logits[0] += 1.4
    label = volumes.volume_label(logits, manager, keep_largest, 0.7)
    assert label.shape == shape and label.dtype == np.int8

    expected = np.zeros(shape, int)
    sure = np.zeros(shape, bool)
    for voxel in np.ndindex(*shape):
        values = logits[(slice(None), *voxel)]
        if manager.has_regions:
            p = torch.sigmoid(values)
            expected[voxel] = 2 if p[1] > 0.5 else int(p[0] > 0.5)
            sure[voxel] = max(p[0], 1 - p[0]) >= 0.7 and max(p[1], 1 - p[1]) >= 0.7
        else:
            p = torch.softmax(values, 0)
            expected[voxel] = int(p.argmax())
            sure[voxel] = p.max() >= 0.7
    removed = np.zeros(shape, bool)
    if keep_largest:
        removed = (expected > 0) & ~largest_by_scipy(expected > 0)
        assert removed.any(), "no island to remove"
    expected[~sure] = 3
    expected[removed] = 0  # also where unsure: the volume says that there is nothing
    assert (expected == 3).any()
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("keep_largest", [True, False])
def test_a_volume_without_foreground_is_ignored_where_components_count(keep_largest):
    logits = torch.zeros(3, 2, 4, 4)
    logits[0] = 5.0
    label = volumes.volume_label(logits, LABELS, keep_largest, 0.0)
    assert (label == (LABELS.ignore_label if keep_largest else 0)).all()


def test_a_mask_is_connected_if_hardly_anything_lies_apart():
    mask = np.zeros((4, 30, 30), bool)
    mask[:, 5:20, 5:20] = True
    assert volumes.is_connected([mask, np.zeros_like(mask)])
    mask[0, 25, 25] = True  # one voxel of 901
    assert volumes.is_connected([mask])
    mask[:2, 25:30, 25:30] = True
    assert not volumes.is_connected([np.zeros_like(mask), mask])


def test_stored_labels_are_there_whole_or_not_at_all(tmp_path):
    base, label = tmp_path / "labels", np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    folder = volumes.folder_of_epoch(base, 7)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        volumes.write_labels(folder, {"one": lambda: label, "two": fail})
    assert not folder.exists()
    volumes.discard(base, epoch=100)
    assert not list(base.iterdir()), "half a set of labels is of no use"

    volumes.write_labels(folder, {"one": lambda: label, "two": lambda: label + 1})
    volumes.publish(folder)
    volumes.discard(base, epoch=8)
    assert sorted(file.name for file in folder.iterdir()) == ["one.b2nd", "two.b2nd"]
    dataset = volumes.PseudoLabelledDataset({"one": tmp_path, "two": tmp_path}, folder)
    shutil.copy(folder / "one.b2nd", tmp_path / "two.b2nd")  # stands in for the image
    image, stored, previous, properties = dataset.load_case("two")
    np.testing.assert_array_equal(stored[:], label[None] + 1)
    np.testing.assert_array_equal(image[:], label[None])
    assert previous is None and properties == {"class_locations": {}}
    volumes.discard(base, epoch=7)
    assert not folder.exists()


SETTINGS = {"warmup_fraction": 0.25, "refreshes": 2}


def trainer_of(prepared):
    return make_trainer(tiny(nnUNetTrainerVolumePseudoLabels, 4, 2), prepared, SETTINGS)


def test_volumes_are_labelled_at_equal_distances_and_their_labels_are_never_opened(prepared):
    for case in prepared.split["unlabelled"]:
        (prepared.case_folder / f"{case}_seg.b2nd").write_bytes(b"not to be opened")
        (prepared.case_folder / f"{case}.pkl").write_bytes(b"not to be opened")
    trainer = trainer_of(prepared)
    assert trainer.refresh_epochs == [1, 2]
    served = []

    def pooled_loss(logits, target, pseudo_target):
        served.append([t.clone() for t in pseudo_target])
        return type(trainer).pooled_loss(trainer, logits, target, pseudo_target)

    trainer.pooled_loss = pooled_loss
    trainer.run_training()
    folders = sorted((Path(trainer.output_folder) / "pseudo_labels").iterdir())
    assert [folder.name for folder in folders] == ["epoch_1", "epoch_2"]
    for folder in folders:
        cases = sorted(file.name.removesuffix(".b2nd") for file in folder.iterdir())
        assert cases == sorted(prepared.split["unlabelled"])
    in_stage_2 = served[2:]
    scales = trainer._get_deep_supervision_scales()
    assert len(in_stage_2) == 6 and all(len(targets) == len(scales) for targets in in_stage_2)
    values = torch.cat([targets[0].flatten() for targets in in_stage_2]).unique().tolist()
    assert set(values) <= {0, 1, 2, 3, 4} and 4 in values, "unsure voxels have the ignore label"


def test_a_continued_training_repeats_an_undisturbed_one(prepared):
    kept = prepared.base / "kept.pth"
    trainer = trainer_of(prepared)
    keep_latest(trainer, 2, kept)  # before the labels of this epoch are made
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    undisturbed = torch.load(final, weights_only=False)

    continued = trainer_of(prepared)
    continued.load_checkpoint(str(kept))
    damaged = Path(continued.output_folder) / "pseudo_labels" / "epoch_2"
    for file in damaged.iterdir():
        file.write_bytes(b"from a training that went on in another way")
    continued.run_training()
    result = torch.load(final, weights_only=False)
    for checkpoint in (undisturbed, result):
        for key in ("epoch_start_timestamps", "epoch_end_timestamps"):
            checkpoint["logging"].pop(key)
    assert_equal_to_the_bit(undisturbed, result)


def test_without_warm_up_there_is_no_teacher_to_label_volumes(prepared):
    trainer = make_trainer(nnUNetTrainerVolumePseudoLabels, prepared, {"warmup_fraction": 0.0})
    with pytest.raises(ValueError, match='"warmup_fraction"'):
        trainer.initialize()


@pytest.mark.parametrize(("setting", "keeps"), [("none", False), ("largest", True), ("auto", True)])
def test_the_filter_follows_the_labelled_cases(prepared, setting, keeps):
    trainer = make_trainer(nnUNetTrainerVolumePseudoLabels, prepared, {"component_filter": setting})
    trainer.dataset_class = nnUNetDatasetBlosc2
    assert trainer.keeps_largest == keeps
