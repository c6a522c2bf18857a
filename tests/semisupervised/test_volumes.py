"""Pseudo-labels of whole volumes: the label, its storage, and a training that serves them."""

import itertools
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
from nnunetv2_plgcl.semisupervised.loaders import unlabelled_loader
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
    label, islands = volumes.volume_label(logits, manager, keep_largest, 0.7)
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
    assert {(0, *voxel) for voxel in np.argwhere(removed)} == set(map(tuple, islands))


def test_of_large_islands_some_places_are_kept_all_over_them():
    logits = torch.zeros(3, 4, 100, 100)
    logits[1, :2] = 5.0  # 20,000 voxels, the larger part
    logits[1, 3, 1:] = logits[2, 3, :1] = 4.0  # 10,000 in one piece, of two classes
    islands = volumes.volume_label(logits, LABELS, True, 0.0).islands
    assert len(islands) == 100 * 100
    logits.zero_()
    logits[1, :, :45] = 5.0  # 18,000
    logits[1, :, 46:] = 5.0  # 21,600, the larger part
    islands = volumes.volume_label(logits, LABELS, True, 0.0).islands
    assert len(islands) == 9_000 and set(islands[:, 1]) == {0, 1, 2, 3}
    assert islands[:, 2].max() == 44


@pytest.mark.parametrize("keep_largest", [True, False])
def test_a_volume_without_foreground_is_ignored_where_components_count(keep_largest):
    logits = torch.zeros(3, 2, 4, 4)
    logits[0] = 5.0
    label, islands = volumes.volume_label(logits, LABELS, keep_largest, 0.0)
    assert len(islands) == 0
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
    islands = np.array([[0, 1, 2, 3]])
    one = volumes.VolumeLabel(label, islands)
    two = volumes.VolumeLabel(label + 1, 0 * islands)
    folder = volumes.folder_of_epoch(base, 7)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        volumes.write_labels(folder, {"one": lambda: one, "two": fail})
    assert not folder.exists()
    volumes.discard(base, epoch=100)
    assert not list(base.iterdir()), "half a set of labels is of no use"

    volumes.write_labels(folder, {"one": lambda: one, "two": lambda: two})
    volumes.publish(folder)
    volumes.discard(base, epoch=8)
    files = ["one.b2nd", "one.npy", "two.b2nd", "two.npy"]
    assert sorted(file.name for file in folder.iterdir()) == files
    dataset = volumes.PseudoLabelledDataset({"one": tmp_path, "two": tmp_path}, folder)
    shutil.copy(folder / "one.b2nd", tmp_path / "two.b2nd")  # stands in for the image
    image, stored, previous, properties = dataset.load_case("two")
    np.testing.assert_array_equal(stored[:], label[None] + 1)
    np.testing.assert_array_equal(image[:], label[None])
    assert previous is None
    np.testing.assert_array_equal(properties["class_locations"][volumes.ISLANDS], 0 * islands)
    (folder / "two.npy").unlink()  # as in a training begun before places were noted
    assert dataset.load_case("two")[3] == {"class_locations": {}}
    volumes.discard(base, epoch=7)
    assert not folder.exists()


@pytest.mark.parametrize(("share", "patch"), [(1.0, (16, 16)), (0.5, (16, 16)), (1.0, (3, 8, 8))])
def test_the_loader_centres_a_share_of_patches_on_islands(tmp_path, share, patch):
    """Two volumes, of which one has an island; the label says where a voxel comes from."""
    label = np.arange(8 * 24 * 24, dtype=np.int16).reshape(8, 24, 24)
    there = volumes.VolumeLabel(label, np.array([[0, 5, 12, 12]]))
    nothing = volumes.VolumeLabel(label * 0 - 1, np.zeros((0, 4), int))
    folder = tmp_path / "labels"
    volumes.write_labels(folder, {"there": lambda: there, "nothing": lambda: nothing})
    volumes.publish(folder)
    cases = dict.fromkeys(("there", "nothing"), folder)  # labels stand in for images
    dataset = volumes.PseudoLabelledDataset(cases, folder)
    augmenter = unlabelled_loader(
        dataset, 2, patch, patch, LABELS, None, lambda number: np.arange(number), 0, False, share
    )
    np.random.seed(0)
    centred = [
        bool((target == label[5, 12, 12]).any())
        for batch in itertools.islice(augmenter, 100)
        for target in batch["target"]
        if target.max() > -1
    ]
    assert len(centred) > 60
    assert np.mean(centred) == 1 if share == 1 else 0.4 < np.mean(centred) < 0.7


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
        cases = sorted(file.stem for file in folder.glob("*.b2nd"))
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
