"""Labels of unlabelled cases leave planning's sight, and come back."""

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY
from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet
from training import make_trainer, tiny

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets import strict
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


@pytest.fixture
def raw(prepared):
    (prepared.preprocessed / "splits_final.json").unlink()
    return prepared.base / "nnUNet_raw" / prepared.name


def tree(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def split(*more: str) -> None:
    commands.split(["-d", "901", *more])


STRICT = ("--labelled", "4", "--val", "2", "--strict", "--group-by", ".+")


def names(folder) -> set[str]:
    return {file.name.removesuffix(".nii.gz").removesuffix("_0000") for file in folder.iterdir()}


def test_labels_are_out_of_sight_and_come_back(prepared, raw, capsys):
    before = tree(raw)
    split(*STRICT)
    (fold,) = json.loads((prepared.preprocessed / "splits_final.json").read_text())
    assert fold["unlabelled"] == [] and len(fold["train"]) == 4 and len(fold["val"]) == 2
    assert names(raw / "labelsTr") == names(raw / "imagesTr") == {*fold["train"], *fold["val"]}
    hidden = names(raw / "labelsUn")
    assert len(hidden) == 6 and names(raw / "imagesUn") == hidden
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 6
    for case in hidden:
        assert not list(prepared.preprocessed.rglob(f"gt_segmentations/{case}*"))
    assert not (prepared.preprocessed / "dataset_fingerprint.json").exists()
    with pytest.raises(SystemExit, match="hidden by --strict"):
        split("--labelled", "3")

    split("--undo")
    after = tree(raw)
    assert json.loads(after.pop("dataset.json")) == json.loads(before.pop("dataset.json"))
    assert after == before
    (fold,) = json.loads((prepared.preprocessed / "splits_final.json").read_text())
    assert set(fold["unlabelled"]) == hidden
    with pytest.raises(SystemExit, match="nothing to undo"):
        split("--undo")


def test_the_fingerprint_does_not_see_hidden_labels(prepared, raw):
    """Whatever is in the labels of unlabelled cases, the statistics of planning are the same."""

    def statistics():
        nnunet.extract_fingerprints([901], num_processes=1, show_progress_bar=False)
        content = json.loads((prepared.preprocessed / "dataset_fingerprint.json").read_text())
        return content["foreground_intensity_properties_per_channel"]

    with_all_labels = json.loads((prepared.preprocessed / "dataset_fingerprint.json").read_text())
    split(*STRICT)
    hidden = statistics()
    assert hidden != with_all_labels["foreground_intensity_properties_per_channel"]
    for label in (raw / "labelsUn").iterdir():
        label.write_bytes(b"anything")
    (prepared.preprocessed / "dataset_fingerprint.json").unlink()
    assert statistics() == hidden


def test_a_strict_dataset_trains_once_it_is_planned_again(prepared, raw, in_this_process, capsys):
    split(*STRICT)
    again = "before --strict hid labels. Plan and preprocess again: nnUNetv2_plan_and_preprocess"
    for stale in (True, False):  # preprocessed cases of before, or their plans alone
        with pytest.raises(ValueError, match=again):
            make_trainer(tiny(nnUNetTrainerPLGCL), prepared).on_train_start()
        with pytest.raises(SystemExit, match=again):
            commands.preprocess(["-d", "901", "-c", TINY])
        for fold in ("0", "all"):
            with pytest.raises(SystemExit):
                commands.check(["-d", "901", "-c", TINY, "-f", fold])
            assert again in capsys.readouterr().out
        if stale:
            for case in names(raw / "imagesUn"):
                for file in prepared.case_folder.glob(f"{case}*"):
                    file.unlink()
    nnunet.extract_fingerprints([901], num_processes=1, show_progress_bar=False)
    nnunet.preprocess([901], configurations=[TINY], num_processes=[1], show_progress_bar=False)
    with pytest.raises(FileNotFoundError, match="nnUNetv2_plgcl_preprocess"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).on_train_start()
    commands.preprocess(["-d", "901", "-c", TINY])
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 1), prepared)
    trainer.run_training()
    assert set(trainer.dataset_unlabelled.identifiers) == names(raw / "imagesUn")
    split("--undo")
    assert not (prepared.preprocessed / f"nnUNetPlans_{TINY}_unlabelled").exists()


def test_files_that_belong_to_a_case_move_with_it(tmp_path):
    """nnU-Net keeps the spacing of a 3D TIFF in CASE.json, beside the image and the label."""
    kept, hidden = {"a", "a.b"}, {"1.2.3", "c_1"}
    for folder, ending in (("imagesTr", "_0000.tif"), ("labelsTr", ".tif")):
        (tmp_path / folder).mkdir()
        for case in kept | hidden:
            (tmp_path / folder / f"{case}{ending}").touch()
            (tmp_path / folder / f"{case}.json").touch()
    (tmp_path / "imagesTr" / "c_1_0000.nfo").touch()
    (tmp_path / "imagesTr" / "readme.txt").touch()
    (tmp_path / "dataset.json").write_text(
        '{"file_ending": ".tif", "labels": {"background": 0, "a": 1}}'
    )
    before = tree(tmp_path)
    strict.hide_labels(tmp_path, tmp_path / "preprocessed", sorted(hidden))
    of_cases = {f"{case}{end}" for case in hidden for end in ("_0000.tif", ".json")}
    assert {f.name for f in (tmp_path / "imagesUn").iterdir()} == {*of_cases, "c_1_0000.nfo"}
    assert {f.name for f in (tmp_path / "labelsUn").iterdir()} == {
        f"{case}{end}" for case in hidden for end in (".tif", ".json")
    }
    assert len(list((tmp_path / "imagesTr").iterdir())) == 5
    strict.restore_labels(tmp_path, tmp_path / "preprocessed")
    after = tree(tmp_path)
    assert json.loads(after.pop("dataset.json")) == json.loads(before.pop("dataset.json"))
    assert after == before


def test_images_without_a_label_are_out_of_the_way(prepared, raw, capsys):
    """nnU-Net cannot plan with an image that has no label: --strict is the way out."""
    cases = sorted(names(raw / "labelsTr"))
    for case in cases[6:]:
        (raw / "labelsTr" / f"{case}.nii.gz").unlink()
    ours = ("--labelled", "4", "--val", "2", "--group-by", ".+")
    split(*ours)
    assert "imagesTr without a label: unlabelled, but nnU-Net cannot" in capsys.readouterr().out
    split(*ours, "--strict", "--force")
    assert names(raw / "imagesTr") == names(raw / "labelsTr") == set(cases[:6])
    assert names(raw / "imagesUn") == set(cases[6:]) and not (raw / "labelsUn").exists()


def test_labels_of_zeros_are_warned_of_where_they_are_drawn(prepared, raw, capsys):
    """Never read where they are not: that would open labels of unlabelled cases."""
    cases = sorted(names(raw / "labelsTr"))
    zeros, hidden = cases[:2], cases[8:]
    for case in cases:
        copy = prepared.preprocessed / "gt_segmentations" / f"{case}.nii.gz"
        image = sitk.ReadImage(str(copy))
        if case in hidden:
            copy.write_bytes(b"not a label")
        if case in zeros:
            sitk.WriteImage(image * 0, str(copy))
    split("--labelled", *cases[:4], "--val", *cases[4:8], "--group-by", ".+")
    out = capsys.readouterr().out
    assert f"Warning: Cases {', '.join(zeros)}: no voxel of any class in the label" in out
    assert "cannot be read" not in out


def test_a_target_that_cannot_be_written_leaves_everything_as_it_was(prepared, raw, monkeypatch):
    def rename(source, target):
        if len(list((raw / "imagesUn").glob("*"))) == 2:
            monkeypatch.setattr(os, "rename", move)
            raise PermissionError(f"no right to write {target}")
        move(source, target)

    move = os.rename
    monkeypatch.setattr(os, "rename", rename)
    before, split_before = tree(raw), tree(prepared.preprocessed)
    with pytest.raises(SystemExit, match="no right to write"):
        split(*STRICT, "--force")
    after = tree(prepared.preprocessed)
    after.pop("plgcl_labels.json")  # what was read of labels is remembered
    assert tree(raw) == before and after == split_before


@pytest.mark.parametrize(
    "at, elsewhere, said",
    [
        ("moves", ["../elsewhere/a.nii.gz", "a"], "elsewhere/a.nii.gz is not in "),
        ("moves", ["/elsewhere/a.nii.gz", "a"], "elsewhere/a.nii.gz is not in "),
        ("cases", "../../elsewhere", "a case in it is no name"),
        ("cases", 5, "a case in it is no name"),
        ("moves", "ab", "a move in it is no pair of paths"),
        ("moves", [1, 2], "a move in it is no pair of paths"),
    ],
)
def test_nothing_outside_the_dataset_is_moved_back_or_removed(prepared, raw, at, elsewhere, said):
    split(*STRICT)
    journal = json.loads((raw / strict.JOURNAL).read_text())
    journal[at][0] = elsewhere
    (raw / strict.JOURNAL).write_text(json.dumps(journal))
    before = tree(raw)
    with pytest.raises(SystemExit, match=said):
        split("--undo")
    assert tree(raw) == before


def test_what_is_not_there_is_not_called_moved_back(prepared, raw):
    split(*STRICT)
    (raw / "imagesUn").rename(raw / "imagesUn_moved")
    before = tree(raw)
    with pytest.raises(SystemExit, match="is not there to be moved back, so nothing was undone"):
        split("--undo")
    assert tree(raw) == before
    (raw / "imagesUn_moved").rename(raw / "imagesUn")
    split("--undo")
    assert not (raw / strict.JOURNAL).exists()


@pytest.mark.parametrize("moved", [0, 3, 7, 12])
def test_an_interruption_can_be_undone(prepared, raw, monkeypatch, moved):
    before = tree(raw)
    rename, done = strict.os.rename, []

    def interrupted(*arguments):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(rename(*arguments))

    monkeypatch.setattr(strict.os, "rename", interrupted)
    with pytest.raises(SystemExit, match="130") if moved < 12 else pytest.MonkeyPatch.context():
        split(*STRICT)
    monkeypatch.setattr(strict.os, "rename", rename)
    split("--undo")
    after = tree(raw)
    assert json.loads(after.pop("dataset.json")) == json.loads(before.pop("dataset.json"))
    assert after == before


def test_nothing_is_replaced(prepared, raw):
    split(*STRICT)
    case = sorted(names(raw / "labelsUn"))[0]
    shutil.copy(raw / "labelsUn" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    with pytest.raises(SystemExit, match=f"{case}.nii.gz are both there"):
        split("--undo")
    (raw / "labelsTr" / f"{case}.nii.gz").unlink()
    split("--undo")
    (raw / "imagesUn").mkdir()
    shutil.copy(raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "imagesUn")
    before = tree(raw)
    with pytest.raises(SystemExit, match="exists already: move it away"):
        split(*STRICT, "--force")
    assert tree(raw) == before


def test_datasets_that_list_their_files_cannot_be_moved(prepared, raw):
    content = json.loads((raw / "dataset.json").read_text())
    cases = sorted(names(raw / "imagesTr"))
    content["dataset"] = {
        c: {"images": [f"imagesTr/{c}_0000.nii.gz"], "label": f"labelsTr/{c}.nii.gz"} for c in cases
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="lists the files of each case"):
        split(*STRICT)
    assert not (prepared.preprocessed / "splits_final.json").exists(), "no split that nothing fits"


def test_how_many_are_labelled_must_be_said(raw):
    with pytest.raises(SystemExit, match="--labelled is needed: how many groups of cases"):
        split()
    assert np.all([not (raw / name).exists() for name in ("imagesUn", "labelsUn")])


@pytest.mark.parametrize("arguments", [("--undo", "--labelled", "2"), (*STRICT, "--folds", "2")])
def test_wrong_combinations_are_refused(raw, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        split(*arguments)
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err
    assert np.all([not (raw / name).exists() for name in ("imagesUn", "labelsUn")])
