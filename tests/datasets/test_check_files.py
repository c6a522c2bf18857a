"""Each mistake in images, labels and preprocessed files that a check is for, in real data."""

import json
import os
import pickle
import shutil
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from checking import damage, gt, raw_image, rewrite, run, start, write_split
from conftest import TINY

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets import cache as cache_module


def test_a_copy_of_a_validation_image_among_the_unlabelled(prepared, capsys):
    """Under another name, compressed anew and as another type: only the content tells."""
    val, unlabelled = prepared.split["val"][0], prepared.split["unlabelled"][0]
    image = sitk.ReadImage(str(raw_image(prepared, val)), sitk.sitkFloat64)
    sitk.WriteImage(image, str(raw_image(prepared, unlabelled)))
    status, out = run(capsys)
    assert status == 1
    assert f"under two names: {unlabelled} (unlabelled) = {val} (validation). Remove" in out
    with pytest.raises(ValueError, match="The same image under two names"):
        start(prepared)


def test_useless_and_damaged_images(prepared, capsys):
    constant, cut = prepared.split["unlabelled"][:2]
    rewrite(raw_image(prepared, constant), lambda a: np.full_like(a, 7))
    file = raw_image(prepared, cut)
    file.write_bytes(file.read_bytes()[:3000])
    status, out = run(capsys)
    assert status == 1
    assert f"Case {constant}: the same value everywhere" in out
    assert f"Case {cut} cannot be read. {file} is truncated" in out


def test_images_unlike_the_labelled_ones_are_warned_of(prepared, capsys):
    spacing, turned, bright = prepared.split["unlabelled"][:3]
    image = sitk.ReadImage(str(raw_image(prepared, spacing)))
    image.SetSpacing([3.0 * s for s in image.GetSpacing()])
    sitk.WriteImage(image, str(raw_image(prepared, spacing)))
    image = sitk.ReadImage(str(raw_image(prepared, turned)))
    image.SetDirection(np.array(image.GetDirection()) * ([-1, -1, 1] * 3))
    sitk.WriteImage(image, str(raw_image(prepared, turned)))
    rewrite(raw_image(prepared, bright), lambda a: 100 * a + 1000)
    status, out = run(capsys)
    assert status == 0 and "0 errors, 4 warnings" in out
    assert f"Cases {spacing}, {turned}, {bright}: the image is newer than what was" in out
    assert f"Case {spacing}: voxel spacing" in out
    assert f"Case {turned}: axes point to" in out
    assert f"Case {bright}: mean intensity" in out
    assert "axes point to" in start(prepared)


def test_nan_in_a_file_of_floats_is_found_whatever_the_reader_makes_of_it(prepared, capsys):
    file = raw_image(prepared, prepared.split["unlabelled"][0])
    image = nibabel.load(file)
    values = image.get_fdata(dtype=np.float32)
    values[3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine), file)
    status, out = run(capsys)
    assert status == 1 and "NaN or infinite values" in out


def test_an_image_that_is_gone_is_said(prepared, capsys):
    raw_image(prepared, prepared.split["unlabelled"][0]).unlink()
    status, out = run(capsys)
    assert status == 0 and "no image in" in out and "so it is not checked" in out


def test_a_class_that_no_labelled_case_has(prepared, capsys):
    for case in prepared.split["train"]:
        file = prepared.case_folder / f"{case}.pkl"
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"][2] = []
        file.write_bytes(pickle.dumps(properties))
    name = next(n for n, v in prepared.dataset_json()["labels"].items() if v == 2)
    status, out = run(capsys)
    assert status == 0 and f"No labelled case has {name} (2)" in out


def test_cases_that_are_not_preprocessed(prepared, capsys):
    case = prepared.split["unlabelled"][0]
    (prepared.case_folder / f"{case}.b2nd").unlink()
    status, out = run(capsys)
    assert status == 1 and f"Case {case}: not preprocessed for configuration {TINY}" in out


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("content", [None, b"", b"\x80\x04N.", b"garbage"])
def test_what_nnunet_noted_of_a_case_is_lost(prepared, capsys, part, content):
    """A training reads it when it draws a labelled case, or at the end, when it validates."""
    file = prepared.case_folder / f"{prepared.split[part][0]}.pkl"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    status, out = run(capsys)
    what = "is missing" if content is None else "cannot be read, it is damaged"
    assert status == 1 and f"{file} {what}. Run: nnUNetv2_preprocess -d 901 -c {TINY}" in out
    with pytest.raises(ValueError, match=what):
        start(prepared)


def test_a_segmentation_that_ends_too_early(prepared, capsys):
    file = prepared.case_folder / f"{prepared.split['val'][0]}_seg.b2nd"
    whole = file.read_bytes()  # header and trailer are sound, the values are not
    third = len(whole) // 3
    file.write_bytes(whole[:third] + b"\7" * third + whole[2 * third :])
    status, out = run(capsys)
    assert status == 1 and f"{file} cannot be" in out and "damaged" in out


def test_a_preprocessed_file_of_words(prepared, capsys):
    file = prepared.case_folder / f"{prepared.split['unlabelled'][0]}.b2nd"
    file.unlink()
    blosc2.asarray(np.full((1, 2, 48, 48), b"word"), urlpath=str(file))
    status, out = run(capsys)
    assert status == 1 and f"{file} is no preprocessed case: it holds |S4, no numbers." in out


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda folder: (folder / "README.txt").write_text("moved"), "holds no image"),
        (lambda folder: (folder / "x_0000.nii.gz").symlink_to("nowhere"), "holds no image"),
        (lambda folder: (folder / "scan.nii.gz").write_text("x"), "is not named as nnU-Net wants"),
    ],
)
def test_raw_images_that_cannot_be_found_do_not_hinder_a_training(prepared, capsys, spoil, said):
    folder = raw_image(prepared, "x").parent
    shutil.rmtree(folder)
    folder.mkdir()
    spoil(folder)
    status, out = run(capsys)
    assert status == 0 and said in out and "So the images there are not checked." in out
    assert said in start(prepared)


def test_a_folder_of_raw_images_that_may_not_be_read(prepared, capsys, monkeypatch):
    listdir = os.listdir

    def forbidden(folder="."):
        if str(folder).endswith(("imagesTr", "imagesUn")):
            raise PermissionError(13, "Permission denied", str(folder))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", forbidden)
    status, out = run(capsys)
    assert status == 0 and "Permission denied" in out


def test_training_data_alone_on_another_machine(prepared, capsys, monkeypatch):
    """nnUNetv2_train needs no nnUNet_raw, so the check does not either."""
    shutil.rmtree(prepared.base / "nnUNet_raw")
    monkeypatch.delenv("nnUNet_raw")
    status, out = run(capsys)
    assert status == 0 and "raw images are not at hand" in out
    assert "raw images are not at hand" in start(prepared)


def test_a_hidden_file_that_nnunet_would_take_for_a_case(prepared, capsys):
    """macOS leaves such beside what it copies."""
    folder = prepared.case_folder
    (folder / f"._{prepared.split['train'][0]}.b2nd").write_bytes(b"Mac OS X")
    assert run(capsys)[0] == 0, "a fold that names its cases does not mind"
    with pytest.raises(SystemExit):
        commands.check(["-d", "901", "-c", TINY, "-f", "all"])
    assert f"error   {folder} holds ._{prepared.split['train'][0]}.b2nd" in capsys.readouterr().out


def test_without_raw_images_the_rest_is_checked(prepared, capsys):
    shutil.rmtree(prepared.base / "nnUNet_raw" / prepared.name)
    status, out = run(capsys)
    assert status == 0 and "raw images are not at hand" in out


def test_labels_of_unlabelled_cases_are_not_opened(prepared, capsys):
    for case in prepared.split["unlabelled"]:
        for suffix in ("_seg.b2nd", ".pkl"):
            (prepared.case_folder / f"{case}{suffix}").write_bytes(b"not a label")
        label = prepared.base / "nnUNet_raw" / prepared.name / "labelsTr" / f"{case}.nii.gz"
        label.write_bytes(b"not a label")
    assert run(capsys)[0] == 0


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_label_value_that_dataset_json_does_not_name(prepared, capsys, part):
    """A mask of 0 and 255, one stray voxel: read from the labels that a training may open."""
    case = prepared.split[part][0]
    rewrite(gt(prepared, case), lambda a: np.where(a == 1, 255, a))
    rewrite(gt(prepared, prepared.split["unlabelled"][0]), lambda a: 0 * a + 77)
    status, out = run(capsys)
    assert (
        status == 1 and f"Case {case}: value 255 in the label, but dataset.json names 0, 1" in out
    )
    assert "77" not in out
    with pytest.raises(ValueError, match=f"Case {case}: value 255"):
        start(prepared)


def test_labels_without_any_class_are_warned_of(prepared, capsys):
    """Users are told to fill labels of unlabelled cases with zeros; true negatives exist."""
    case = prepared.split["train"][0]
    rewrite(gt(prepared, case), lambda a: 0 * a)
    status, out = run(capsys)
    assert status == 0 and f"warning Case {case}: no voxel of any class in the label" in out


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "cannot be opened, it is damaged"),
        ("garbage", "cannot be opened, it is damaged"),
        ("channels", "2 channels preprocessed, but dataset.json has 1"),
        ("nan", "NaN or infinite once preprocessed"),
    ],
)
@pytest.mark.parametrize("part", ["unlabelled", "val"])
def test_damaged_preprocessed_files(prepared, capsys, how, message, part):
    """They would stop a training after its warm-up, or validation after all of it."""
    case = prepared.split[part][0]
    damage(prepared.case_folder / f"{case}.b2nd", how)
    status, out = run(capsys)
    assert status == 1 and f"Case {case}" in out and message in out


def test_a_training_does_not_start_with_a_damaged_file(prepared, capsys):
    case = prepared.split["unlabelled"][0]
    damage(prepared.case_folder / f"{case}.b2nd", "truncated")
    with pytest.raises(ValueError, match=f"Case {case}.*damaged.*nnUNetv2_preprocess"):
        start(prepared)


def test_paths_of_another_machine_and_an_empty_folder(prepared, capsys):
    raw = prepared.base / "nnUNet_raw" / prepared.name
    shutil.rmtree(raw / "imagesTr")
    (raw / "imagesTr").mkdir()
    status, out = run(capsys)
    assert status == 0 and "raw images are not at hand" in out
    file = prepared.preprocessed / "dataset.json"
    cases = [case for part in prepared.split.values() for case in part]
    listed = {
        c: {"images": [f"/elsewhere/{c}.nii"], "label": f"/elsewhere/l{c}.nii"} for c in cases
    }
    file.write_text(json.dumps({**prepared.dataset_json(), "dataset": listed}))
    status, out = run(capsys)
    assert status == 0 and "raw images are not at hand" in out


def test_a_preprocessed_folder_that_can_only_be_read(prepared, capsys, monkeypatch):
    """As on clusters: what was read is remembered beside the results, or not at all."""
    monkeypatch.setattr(cache_module.os, "access", lambda path, mode: False)
    assert run(capsys)[0] == 0
    assert not list(prepared.preprocessed.glob("plgcl_*"))
    assert len(list(prepared.results.glob("plgcl_*.json"))) == 5

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache_module.os, "replace", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    assert run(capsys)[0] == 0


def test_every_case_is_named_where_that_is_asked_for(prepared, capsys):
    cases = sorted(prepared.split["unlabelled"])[:5]
    for case in cases:
        rewrite(raw_image(prepared, case), lambda a: 100 * a + 1000)
    assert f"Cases {', '.join(cases[:3])} and 2 more: the image is newer" in run(capsys)[1]
    assert f"Cases {', '.join(cases)}: the image is newer" in run(capsys, "--all-cases")[1]


@pytest.mark.parametrize("name", [".DS_Store", "notes.txt"])
@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerPLGCL"])
def test_a_file_that_is_no_case_is_named(prepared, capsys, name, trainer):
    (prepared.case_folder / name).touch()
    status, out = run(capsys, "-tr", trainer)
    assert status == 1 and f"{prepared.case_folder} holds files that are no preprocessed" in out
    assert f"of those: {name}. Move them away" in out
    with pytest.raises(ValueError, match=f"of those: {name}"):
        start(prepared)


def test_half_a_character_in_a_split(prepared, capsys):
    write_split(prepared, **{"\ud800": []})
    with pytest.raises(SystemExit, match=r"a key of fold 0, '\\ud800', is no text"):
        commands.check(["-d", "901", "-c", TINY, "-f", "0"])
    write_split(prepared, unlabelled=["\ud800", *prepared.split["unlabelled"]])
    with pytest.raises(SystemExit, match=r"'\\ud800' in \"unlabelled\" of fold 0 is no text"):
        commands.check(["-d", "901", "-c", TINY, "-f", "0"])
