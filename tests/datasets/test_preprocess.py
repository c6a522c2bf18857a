"""Images without a label are preprocessed as those with one, and train beside them."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY
from training import command_environment, make_trainer, nnunet_command, tiny

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets import preprocess as library
from nnunetv2_plgcl.datasets.preprocess import preprocess_unlabelled
from nnunetv2_plgcl.datasets.raw import images_by_case
from nnunetv2_plgcl.datasets.unlabelled import preprocessed_cases
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def raw_folder(prepared) -> Path:
    return prepared.base / "nnUNet_raw" / prepared.name


def folder_un(prepared) -> Path:
    return prepared.preprocessed / f"nnUNetPlans_{TINY}_unlabelled"


def put_unlabelled(prepared, cases, prefix="un_", mirrored=False) -> list[str]:
    """Copy images of cases that have a label to imagesUn, under other names.

    A training takes an image under two names for a leak, so mirror those that are to train.
    """
    images = raw_folder(prepared)
    (images / "imagesUn").mkdir(exist_ok=True)
    for case in cases:
        file = images / "imagesTr" / f"{case}_0000.nii.gz"
        copy = images / "imagesUn" / f"{prefix}{file.name}"
        shutil.copy(file, copy)
        if mirrored:
            image = sitk.ReadImage(str(file))
            turned = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, :, ::-1])
            turned.CopyInformation(image)
            sitk.WriteImage(turned, str(copy))
    return [f"{prefix}{case}" for case in cases]


def image(folder: Path, case: str) -> np.ndarray:
    return blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:]


def test_an_image_is_the_same_with_and_without_its_label(prepared, in_this_process):
    cases = put_unlabelled(prepared, prepared.split["unlabelled"])
    assert preprocess_unlabelled(prepared.name, TINY, show_progress=False) == (6, 0)
    assert preprocessed_cases(folder_un(prepared)) == sorted(cases)
    for case in cases:
        np.testing.assert_array_equal(
            image(folder_un(prepared), case), image(prepared.case_folder, case.removeprefix("un_"))
        )
    names = {file.name for file in folder_un(prepared).iterdir()}
    assert names == {f"{c}{e}" for c in cases for e in (".b2nd", ".pkl")} | {"preprocessing.json"}
    assert preprocess_unlabelled(prepared.name, TINY, show_progress=False) == (0, 6)


def test_three_dimensions_and_ct_normalisation(prepared, in_this_process):
    """The statistics of the plans and a resampling along all axes are used too."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    plans = prepared.plans()
    plans["configurations"]["3d_ct"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_ct",
        "spacing": [8.0, 2.5, 2.5],
        "normalization_schemes": ["CTNormalization"],
    }
    (prepared.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    nnunet.preprocess([901], configurations=["3d_ct"], num_processes=[1], show_progress_bar=False)
    case = prepared.split["unlabelled"][0]
    (unlabelled,) = put_unlabelled(prepared, [case])
    preprocess_unlabelled(prepared.name, "3d_ct", show_progress=False)
    np.testing.assert_array_equal(
        image(prepared.preprocessed / "nnUNetPlans_3d_ct_unlabelled", unlabelled),
        image(prepared.preprocessed / "nnUNetPlans_3d_ct", case),
    )


def test_after_a_kill_nothing_half_written_counts_and_the_rest_is_done(prepared):
    cases = put_unlabelled(prepared, prepared.split["unlabelled"])
    command = nnunet_command("nnUNetv2_plgcl_preprocess", "-d", "901", "-c", TINY, "-np", 1)
    running = subprocess.Popen(command, env=command_environment(prepared), start_new_session=True)
    while running.poll() is None and not preprocessed_cases(folder_un(prepared)):
        time.sleep(0.001)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert running.returncode == -signal.SIGKILL, "killed before it was done"
    before = preprocessed_cases(folder_un(prepared))
    assert 0 < len(before) < len(cases)
    done = subprocess.run(
        command, env=command_environment(prepared), capture_output=True, text=True, check=True
    )
    assert (
        f"{len(cases) - len(before)} images preprocessed, {len(before)} were there" in done.stdout
    )
    for case in cases:
        np.testing.assert_array_equal(
            image(folder_un(prepared), case), image(prepared.case_folder, case.removeprefix("un_"))
        )
    assert not (folder_un(prepared) / library.INCOMPLETE).exists()


def test_newer_and_vanished_images_and_other_plans_are_noticed(prepared, in_this_process):
    first, second = put_unlabelled(prepared, prepared.split["unlabelled"][:2])
    preprocess_unlabelled(prepared.name, TINY, show_progress=False)
    (raw_folder(prepared) / "imagesUn" / f"{second}_0000.nii.gz").unlink()
    file = raw_folder(prepared) / "imagesUn" / f"{first}_0000.nii.gz"
    os.utime(file, (time.time() + 10, time.time() + 10))
    assert preprocess_unlabelled(prepared.name, TINY, show_progress=False) == (1, 0)
    assert preprocessed_cases(folder_un(prepared)) == [first]

    os.utime(file, (0, 0))
    plans = prepared.plans()
    plans["configurations"][TINY]["spacing"] = [4.0, 4.0]
    (prepared.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    before = image(folder_un(prepared), first).shape
    assert preprocess_unlabelled(prepared.name, TINY, show_progress=False) == (1, 0)
    assert image(folder_un(prepared), first).shape != before

    intensities = plans.pop("foreground_intensity_properties_per_channel")
    plans["foreground_intensity_properties_by_modality"] = intensities  # of early plans
    (prepared.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert preprocess_unlabelled(prepared.name, TINY, show_progress=False) == (0, 1)


def test_a_damaged_image_is_named_and_the_others_are_done(prepared, in_this_process, capsys):
    good, bad = put_unlabelled(prepared, prepared.split["unlabelled"][:2])
    file = raw_folder(prepared) / "imagesUn" / f"{bad}_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(SystemExit) as stopped:
        commands.preprocess(["-d", "901", "-c", TINY])
    message = str(stopped.value.code)
    assert "1 of 2 cases failed" in message and bad in message
    assert "\n" not in message
    assert preprocessed_cases(folder_un(prepared)) == [good]


def test_other_channels_and_damaged_results_are_noticed(prepared, in_this_process):
    """Fewer channels nnU-Net lets pass; a time series has more."""
    good, several = put_unlabelled(prepared, prepared.split["unlabelled"][:2])
    file = raw_folder(prepared) / "imagesUn" / f"{several}_0000.nii.gz"
    frames = nibabel.load(file)
    data = np.stack([frames.get_fdata()] * 3, -1)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), frames.affine), file)
    with pytest.raises(RuntimeError, match=rf"{file}: 3 channels, but dataset.json has 1\."):
        preprocess_unlabelled(prepared.name, TINY, show_progress=False)
    file.unlink()
    made = folder_un(prepared) / f"{good}.b2nd"
    whole = made.read_bytes()
    made.write_bytes(whole[:500])
    assert preprocess_unlabelled(prepared.name, TINY, show_progress=False) == (1, 0)
    assert image(folder_un(prepared), good).size


def failure(prepared) -> str:
    with pytest.raises(SystemExit) as stopped:
        commands.preprocess(["-d", "901", "-c", TINY])
    message = str(stopped.value.code)
    assert message.startswith("nnUNetv2_plgcl_preprocess: ") and "\n" not in message
    assert not folder_un(prepared).exists(), "nothing half-written is left behind"
    return message


def test_mistakes_are_told_in_one_line(prepared, monkeypatch):
    raw = raw_folder(prepared)
    assert f"no folder {raw}/imagesUn" in failure(prepared)
    (raw / "imagesUn").mkdir()
    assert "holds no image" in failure(prepared)
    case = prepared.split["unlabelled"][0]
    put_unlabelled(prepared, [case], prefix="")
    assert f"{case}: in imagesTr and in imagesUn" in failure(prepared)
    (raw / "imagesUn" / f"{case}_0000.nii.gz").rename(raw / "imagesUn" / "x_0001.nii.gz")
    assert "x has channel 0001, but the other cases have 0000" in failure(prepared)
    (raw / "imagesUn" / "x_0001.nii.gz").rename(raw / "imagesUn" / "x.nii.gz")
    assert "x.nii.gz is not named as nnU-Net wants it: CASE_0000.nii.gz" in failure(prepared)
    (raw / "imagesUn" / "x.nii.gz").rename(raw / "imagesUn" / "x_0000.nii.gz")
    with pytest.raises(SystemExit, match="no configuration 4d, but 2d"):
        commands.preprocess(["-d", "901", "-c", "4d"])
    with pytest.raises(SystemExit, match="nnUNetv2_plan_and_preprocess -d 901"):
        commands.preprocess(["-d", "901", "-c", TINY, "-p", "others"])
    shutil.copy(prepared.preprocessed / "nnUNetPlans.json", prepared.preprocessed / "copy.json")
    with pytest.raises(SystemExit, match='is "nnUNetPlans".* Set it to "copy"'):
        commands.preprocess(["-d", "901", "-c", TINY, "-p", "copy"])
    with pytest.raises(SystemExit, match="no dataset 7"):
        commands.preprocess(["-d", "7", "-c", TINY])


def test_without_the_images_that_have_a_label(prepared, in_this_process):
    """They were preprocessed, then they went."""
    case = prepared.split["unlabelled"][0]
    put_unlabelled(prepared, [case])
    put_unlabelled(prepared, [case], prefix="")
    shutil.rmtree(raw_folder(prepared) / "imagesTr")
    assert f"{case}: in imagesTr and in imagesUn" in failure(prepared)
    (raw_folder(prepared) / "imagesUn" / f"{case}_0000.nii.gz").unlink()
    assert preprocess_unlabelled(prepared.name, TINY, show_progress=False) == (1, 0)


def test_a_full_disk_is_noticed_before(prepared, monkeypatch, in_this_process):
    put_unlabelled(prepared, prepared.split["unlabelled"][:1])
    usage = shutil.disk_usage(prepared.base)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="1 cases need about .* GiB are free"):
        preprocess_unlabelled(prepared.name, TINY, show_progress=False)
    assert preprocessed_cases(folder_un(prepared)) == []


def test_other_files_beside_labelled_images_do_not_matter(tmp_path):
    """As in nnU-Net; among unlabelled images they may be images of a wrong format."""
    for name in ("a_0000.nii.gz", "notes.txt", "b_0000.nii"):
        (tmp_path / name).touch()
    assert list(images_by_case(tmp_path, ".nii.gz", ignore_others=True)) == ["a"]
    with pytest.raises(ValueError, match="b_0000.nii is not named as nnU-Net wants"):
        images_by_case(tmp_path, ".nii.gz")


def test_one_file_with_several_channels_is_a_whole_case(tmp_path):
    """Colour photographs: three channels in dataset.json, one file a case."""
    (tmp_path / "a_0000.png").touch()
    assert images_by_case(tmp_path, ".png") == {"a": [tmp_path / "a_0000.png"]}


@pytest.mark.parametrize("fold", [0, "all"])
def test_unlabelled_images_train_beside_those_of_the_fold(prepared, in_this_process, fold):
    cases = put_unlabelled(prepared, prepared.split["unlabelled"], mirrored=True)
    preprocess_unlabelled(prepared.name, TINY, show_progress=False)
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 3), prepared, fold=fold)
    trainer.run_training()
    of_fold = prepared.split["unlabelled"] if fold == 0 else []
    assert sorted(trainer.dataset_unlabelled.identifiers) == sorted([*of_fold, *cases])
    assert trainer.logger.local_logger.my_fantastic_logging["loss_consistency"][-1] > 0


def test_unlabelled_images_alone_need_no_split_of_ours(prepared, in_this_process):
    """Labelled cases in imagesTr, unlabelled ones in imagesUn: nnU-Net splits the labelled."""
    (prepared.preprocessed / "splits_final.json").unlink()
    cases = put_unlabelled(prepared, prepared.split["unlabelled"], mirrored=True)
    preprocess_unlabelled(prepared.name, TINY, show_progress=False)
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 1), prepared)
    trainer.run_training()
    assert sorted(trainer.dataset_unlabelled.identifiers) == sorted(cases)
    assert len(json.loads((prepared.preprocessed / "splits_final.json").read_text())) == 5


def test_training_refuses_unlabelled_images_that_do_not_fit(prepared, in_this_process):
    def start():
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared).on_train_start()

    first, _ = put_unlabelled(prepared, prepared.split["unlabelled"][:2], mirrored=True)
    with pytest.raises(FileNotFoundError, match=f"{first}.*nnUNetv2_plgcl_preprocess -d 901 -c"):
        start()
    preprocess_unlabelled(prepared.name, TINY, show_progress=False)
    start()
    raw = raw_folder(prepared) / "imagesUn" / f"{first}_0000.nii.gz"
    raw.rename(prepared.base / raw.name)
    start()  # nnU-Net does not look at raw images either
    (prepared.base / raw.name).rename(raw)
    with pytest.raises(ValueError, match="preprocessed with other plans. Run: nnUNetv2_plgcl_prep"):
        make_trainer(tiny(nnUNetTrainerPLGCL), prepared, spacing=[4.0, 4.0]).on_train_start()
    for ending in (".b2nd", ".pkl"):
        shutil.copy(
            folder_un(prepared) / f"{first}{ending}", prepared.case_folder / f"{first}{ending}"
        )
    with pytest.raises(ValueError, match=f"{first}: in imagesUn and in imagesTr"):
        start()
