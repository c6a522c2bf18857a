"""Every mistake is told before training starts, with what to do."""

import json

import pytest
import torch
from conftest import TINY
from training import make_trainer, tiny

from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def write_split(prepared, **changes):
    split = {**prepared.split, **changes}
    split = {part: cases for part, cases in split.items() if cases is not None}
    (prepared.preprocessed / "splits_final.json").write_text(json.dumps([split]))


def start(prepared, **kwargs):
    make_trainer(tiny(nnUNetTrainerPLGCL), prepared, **kwargs).on_train_start()


@pytest.mark.parametrize("unlabelled", [None, []])
def test_no_unlabelled_case(prepared, unlabelled):
    write_split(prepared, unlabelled=unlabelled)
    with pytest.raises(ValueError, match="names no unlabelled case.*nnUNetv2_plgcl_split -d"):
        start(prepared)


def test_no_split_at_all(prepared):
    """nnU-Net would write a split of its own, and nnUNetv2_plgcl_split would not replace it."""
    file = prepared.preprocessed / "splits_final.json"
    file.unlink()
    with pytest.raises(ValueError, match="Fold 0 is not in .*nnUNetv2_plgcl_split"):
        start(prepared)
    assert not file.exists()


def test_fold_all_has_no_unlabelled_case(prepared):
    with pytest.raises(ValueError, match="Fold all is not in .*nnUNetv2_plgcl_split"):
        start(prepared, fold="all")


def test_fold_beyond_the_split(prepared):
    with pytest.raises(ValueError, match="Fold 3 is not in"):
        start(prepared, fold=3)


@pytest.mark.parametrize(("part", "meaning"), [("train", "labelled"), ("val", "in validation")])
def test_a_case_on_two_sides(prepared, part, meaning):
    case = prepared.split[part][0]
    write_split(prepared, unlabelled=[*prepared.split["unlabelled"], case])
    with pytest.raises(ValueError, match=f"{case} of fold 0 .* both unlabelled and {meaning}"):
        start(prepared)


def test_a_case_listed_twice(prepared):
    case = prepared.split["unlabelled"][0]
    write_split(prepared, unlabelled=[*prepared.split["unlabelled"], case])
    with pytest.raises(ValueError, match=f"lists Case {case} twice"):
        start(prepared)


def test_an_unlabelled_case_that_was_never_preprocessed(prepared):
    write_split(prepared, unlabelled=[*prepared.split["unlabelled"], "patient999_frame01"])
    with pytest.raises(
        FileNotFoundError, match=f"patient999_frame01.*nnUNetv2_preprocess -d .* -c {TINY}"
    ):
        start(prepared)


def test_a_configuration_that_was_never_preprocessed(prepared):
    with pytest.raises(FileNotFoundError, match=f"nnUNetv2_preprocess -d 901 -c {TINY}"):
        start(prepared, data_identifier="nnUNetPlans_other")


def test_a_batch_of_one_cannot_be_divided(prepared):
    with pytest.raises(ValueError, match='batch size .* is 1 .*Set "batch_size" to at least 2'):
        start(prepared, batch_size=1)


def test_an_unknown_configuration_key(prepared):
    with pytest.raises(ValueError, match="Unknown key 'temprature'.*'temperature'"):
        start(prepared, plgcl={"temprature": 1.0})


def finished(prepared, trainer_class=nnUNetTrainerPLGCL, **configuration):
    trainer = make_trainer(tiny(trainer_class, 1, 1), prepared, **configuration)
    trainer.run_training()
    return f"{trainer.output_folder}/checkpoint_final.pth"


def test_a_checkpoint_of_another_trainer(prepared):
    file = finished(prepared, nnUNetTrainerMeanTeacher)
    with pytest.raises(ValueError, match="another training: trainer_name 'nnUNetTrainerMeanTea"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).load_checkpoint(file)


def test_a_checkpoint_of_another_configuration(prepared):
    file = finished(prepared)
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["init_args"]["configuration"] = "3d_fullres"
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match=f"configuration '3d_fullres' .*{TINY}"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).load_checkpoint(file)


@pytest.mark.parametrize(
    "key", ["network_weights", "optimizer_state", "current_epoch", "init_args"]
)
def test_a_checkpoint_that_lacks_a_part(prepared, key):
    file = finished(prepared)
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint[key]
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match=f"{file} is no checkpoint of .*, it has no {key}. Move"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).load_checkpoint(file)


@pytest.mark.parametrize("content", [{"conv.weight": torch.ones(2)}, [1, 2], torch.ones(3), None])
def test_a_file_of_something_else_is_no_checkpoint(prepared, tmp_path, content):
    torch.save(content, tmp_path / "checkpoint_latest.pth")
    with pytest.raises(ValueError, match="is no checkpoint of a training in nnU-Net"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).load_checkpoint(
            str(tmp_path / "checkpoint_latest.pth")
        )


def test_a_checkpoint_of_plain_nnunet(prepared):
    file = finished(prepared)
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint["plgcl"]
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match="it holds no teacher"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).load_checkpoint(file)


def test_a_damaged_checkpoint(prepared):
    file = finished(prepared)
    with open(file, "r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(RuntimeError, match="Cannot read the checkpoint .*Move it away"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).load_checkpoint(file)
