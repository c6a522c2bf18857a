"""What cannot be compared is refused, before anything is trained."""

import json
import os
import re
import shutil

import pytest
import SimpleITK as sitk
import torch
from comparing import OURS, STOCK, change_json, failure, fold_of
from conftest import TINY

from nnunetv2_plgcl.evaluation import refuse, runs
from nnunetv2_plgcl.evaluation.folds import Fold
from nnunetv2_plgcl.record import FILE as TRAINING
from nnunetv2_plgcl.semisupervised.lock import only_training


def test_unlike_runs_are_refused_by_name(copy):
    ours = fold_of(copy, OURS)
    split = copy.preprocessed / "splits_final.json"
    original = split.read_text()
    (fold,) = json.loads(original)

    change_json(ours / "debug.json", num_epochs="5")
    message = failure(copy)
    assert "5 epochs" in message and "4 epochs" in message and OURS in message
    change_json(ours / "debug.json", num_epochs="4")

    plans = json.loads((ours.parent / "plans.json").read_text())
    plans["configurations"][TINY]["patch_size"] = [32, 32]
    (ours.parent / "plans.json").write_text(json.dumps(plans))
    assert re.search(r"different plans: patch_size", failure(copy))
    plans["configurations"][TINY]["patch_size"] = [48, 48]
    (ours.parent / "plans.json").write_text(json.dumps(plans))

    labelled, other = fold["train"][0], fold["unlabelled"][0]
    swapped = {**fold, "train": [other, *fold["train"][1:]]}
    split.write_text(json.dumps([swapped]))
    message = failure(copy)
    assert "other labelled cases" in message and labelled in message and other in message

    fewer = fold["unlabelled"][1:]
    split.write_text(json.dumps([{**fold, "unlabelled": fewer}]))
    message = failure(copy)
    assert "other unlabelled cases" in message and fold["unlabelled"][0] in message

    split.write_text(json.dumps([{**fold, "val": fold["val"][:1]}]))
    message = failure(copy)
    assert "other validation cases" in message and fold["val"][1] in message


def test_a_run_that_goes_on_keeps_what_was_noted_when_it_began(copy):
    """Else a split that was changed in between would be taken for the one of the training."""
    stock = fold_of(copy, STOCK)
    before = json.loads((stock / runs.RECORD).read_text())
    (stock / "validation" / "summary.json").unlink()
    file = copy.preprocessed / "splits_final.json"
    (fold,) = json.loads(file.read_text())
    swapped = {**fold, "train": fold["unlabelled"][:4], "unlabelled": fold["train"]}
    file.write_text(json.dumps([swapped]))
    message = failure(copy, "--run", "-device", "cpu", "-tr", STOCK)
    assert f"{STOCK} (fold 0, seed 0) has other labelled cases" in message
    assert json.loads((stock / runs.RECORD).read_text()) == before


def test_runs_that_note_no_cases_are_held_against_their_log_and_the_splits_date(copy):
    """As with nnU-Net's trainer started by hand; ours notes its cases in any case."""
    both = [runs.Run(copy.name, t, "nnUNetPlans", TINY, 0, 0) for t in (STOCK, OURS)]
    for one in both:
        (one.folder / runs.RECORD).unlink()
    file = copy.preprocessed / "splits_final.json"
    (fold,) = json.loads(file.read_text())

    def check(trust: bool = False, train: list[str] = fold["train"]) -> None:
        refuse.require_alike(both, {0: Fold(train, fold["val"], fold["unlabelled"])}, trust)

    os.utime(file, (0, 0))
    check()
    os.utime(file)
    with pytest.raises(ValueError, match="younger than the training of nnUNetTrainer_tiny"):
        check()
    check(trust=True)
    with pytest.raises(ValueError, match="had 4 labelled cases"):
        check(trust=True, train=fold["train"][1:])
    swapped = [fold["unlabelled"][0], *fold["train"][1:]]
    with pytest.raises(ValueError, match=r"PLGCL_tiny \(fold 0, seed 0\) has other labelled cases"):
        check(trust=True, train=swapped)


def test_what_cannot_be_compared_is_refused_before_the_first_training(copy, here, tmp_path):
    """The baseline would be trained to its end first; what stops the others is known by then."""
    raw, split = copy.base / "nnUNet_raw" / copy.name, copy.preprocessed / "splits_final.json"
    shutil.rmtree(copy.results)
    run_both = ("--run", "-device", "cpu")
    longer = failure(copy, *run_both, "-tr", STOCK, OURS, "nnUNetTrainer_5epochs")
    assert "5 epochs x 250 iterations" in longer and "4 epochs x 3 iterations" in longer
    assert "nnUNetTrainerNothing" in failure(copy, *run_both, "-tr", STOCK,
                                                        "nnUNetTrainerNothing")  # fmt: skip
    plans_file = copy.preprocessed / "nnUNetPlans.json"
    plans = plans_file.read_text()
    changed = json.loads(plans)
    changed["configurations"][TINY]["plgcl"] = {"ema_decay": 2}
    plans_file.write_text(json.dumps(changed))
    assert f"{OURS} does not start: 'ema_decay'" in failure(copy, *run_both)
    changed["configurations"][TINY].update(plgcl={}, batch_size=1)
    plans_file.write_text(json.dumps(changed))
    assert "The batch size of configuration 2d_tiny is 1" in failure(copy, *run_both)
    plans_file.write_text(plans)

    original = split.read_text()
    (fold,) = json.loads(original)
    split.write_text(json.dumps([{"train": fold["train"], "val": fold["val"]}]))
    assert "names no unlabelled case" in failure(copy, *run_both)
    split.write_text(original)

    reference = copy.preprocessed / "gt_segmentations" / f"{fold['val'][0]}.nii.gz"
    kept = reference.read_bytes()
    image = sitk.ReadImage(reference)
    sitk.WriteImage(image[1:], reference)
    assert f"{reference} has shape" in failure(copy, *run_both)
    sitk.WriteImage(image * 7, reference)
    assert "value 7 in the label" in failure(copy, *run_both)
    reference.unlink()
    assert f"{fold['val'][0]} without a reference" in failure(copy, *run_both)
    reference.write_bytes(kept)

    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    shutil.copy(reference, tmp_path / "labels")
    for channel in (0, 1):
        shutil.copy(raw / "imagesTr" / f"{fold['val'][0]}_0000.nii.gz",
                    tmp_path / "images" / f"{fold['val'][0]}_{channel:04d}.nii.gz")  # fmt: skip
    test = ("--test", tmp_path / "images", tmp_path / "labels")
    assert "has 2 channels, dataset.json names 1" in failure(copy, *run_both, *test)
    assert "add --test" in failure(copy, "-f", "all", *run_both)
    plans = copy.plans()
    plans["configurations"]["second"] = {"inherits_from": TINY, "previous_stage": TINY}
    (copy.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert "second stage of a cascade" in failure(copy, "-c", "second", *run_both, *test)
    assert here == [] and not list(copy.results.rglob("*.pth"))


def test_a_finished_run_that_does_not_fit_is_refused_before_the_others_are_trained(copy, here):
    shutil.rmtree(fold_of(copy, OURS))
    change_json(fold_of(copy, STOCK) / "debug.json", num_epochs="5")
    message = failure(copy, "--run", "-device", "cpu")
    assert "5 epochs" in message and "4 epochs" in message
    change_json(fold_of(copy, STOCK) / "debug.json", num_epochs="4")
    plans_file = copy.preprocessed / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"][TINY]["patch_size"] = [32, 32]
    plans_file.write_text(json.dumps(plans))
    assert "different plans: patch_size" in failure(copy, "--run", "-device", "cpu")
    assert here == []


def test_what_was_begun_is_looked_at_before_anything_is_trained(copy, here):
    """The baseline would be trained to its end before the other training refused to go on."""
    run_both = ("--run", "-device", "cpu")
    shutil.rmtree(fold_of(copy, STOCK))
    ours = fold_of(copy, OURS)
    (ours / "validation" / "summary.json").unlink()
    plans_file = copy.preprocessed / "nnUNetPlans.json"
    plans = plans_file.read_text()
    changed = json.loads(plans)
    changed["configurations"][TINY]["plgcl"] = {"ema_decay": 0.5}
    plans_file.write_text(json.dumps(changed))
    assert "settings.ema_decay was 0.999, is 0.5" in failure(copy, *run_both)
    changed = json.loads(plans)
    changed["transpose_backward"] = [0, 2, 1]
    plans_file.write_text(json.dumps(changed))
    assert "plans.transpose_backward was [0, 1, 2], is [0, 2, 1]" in failure(copy, *run_both)
    plans_file.write_text(plans)

    with only_training(ours):
        assert re.search(r"Process \d+ on \S+ has been training since", failure(copy, *run_both))
    record = (ours / runs.RECORD).read_text()
    (ours / runs.RECORD).write_text(record[:-9])
    assert f"{ours / runs.RECORD} is damaged" in failure(copy, *run_both)
    (ours / runs.RECORD).write_text(record)
    final = ours / "checkpoint_final.pth"
    final.write_bytes(final.read_bytes()[:-99])
    message = failure(copy, *run_both)
    assert f"{final} is no checkpoint that can be trusted: it is damaged. Move it away" in message
    assert here == []


def test_a_begun_training_of_nnunet_with_a_damaged_checkpoint(copy, here):
    stock = fold_of(copy, STOCK)
    (stock / "validation" / "summary.json").unlink()
    (stock / "checkpoint_final.pth").write_bytes(b"\0" * 99)
    message = failure(copy, "--run", "-device", "cpu")
    assert f"{stock / 'checkpoint_final.pth'} is no checkpoint" in message and here == []


@pytest.mark.parametrize("inside", ["general", "parent"])
def test_plans_of_a_repetition_that_were_made_from_earlier_ones(copy, here, inside):
    shutil.rmtree(copy.results)
    file = copy.preprocessed / "nnUNetPlans_seed1.json"
    plans = json.loads(file.read_text())
    if inside == "general":
        plans["transpose_forward"] = [0, 2, 1]
    else:
        plans["configurations"]["2d"]["use_mask_for_norm"] = [True]
    file.write_text(json.dumps(plans))
    message = failure(copy, "--run", "--seeds", 2, "-device", "cpu")
    assert f'{file} is not nnUNetPlans.json with {{"seed": 1}} in {TINY}' in message and here == []


def test_repetitions_with_other_settings_are_not_averaged(copy):
    file = fold_of(copy, OURS, seed=1) / TRAINING
    settings = json.loads(file.read_text())["settings"]
    change_json(file, settings={**settings, "ema_decay": 0.5})
    message = failure(copy, "--seeds", 2)
    assert "(fold 0, seed 1) has other settings than" in message
    assert "settings.ema_decay was 0.999, is 0.5" in message


def test_labels_of_dataset_json_that_have_changed_since(copy):
    labels = copy.dataset_json()["labels"]
    one, other = (name for name, value in labels.items() if value in (1, 2))
    exchanged = {**labels, one: labels[other], other: labels[one]}
    change_json(copy.preprocessed / "dataset.json", labels=exchanged)
    message = failure(copy)
    assert 'was trained with "labels"' in message and "dataset.json now has" in message


def test_what_is_missing_is_said_before_anything_is_done(copy):
    shutil.rmtree(fold_of(copy, OURS) / "validation")
    message = failure(copy)
    assert f"{OURS} (fold 0, seed 0) is not finished" in message
    assert f"nnUNetv2_train {copy.name} {TINY} 0 -tr {OURS} -p nnUNetPlans --c" in message
    assert "has no fold 3" in failure(copy, "-f", "3")
    assert "nnUNetTrainerNothing" in failure(copy, "-tr", "nnUNetTrainerNothing", "--run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_in_one_line(copy):
    shutil.rmtree(fold_of(copy, OURS))
    assert "no cuda device" in failure(copy, "--run")


def test_a_finished_model_that_cannot_be_trusted_is_refused_before_it_predicts(copy):
    file = fold_of(copy, STOCK) / runs.FINAL
    torch.save({**torch.load(file, weights_only=False), "more": torch.nn.Linear(1, 1)}, file)
    assert "could be any code" in failure(copy)
