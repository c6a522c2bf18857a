"""What holds for every dataset: interruptions, bad files, mistakes."""

import gzip
import itertools
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from converting import array, convert, failure, make_acdc, make_crag, names, tiny_volume
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from training import nnunet_command

from nnunetv2_plgcl.datasets.convert.run import SOURCES, read_protocol


def test_real_worker_processes_and_a_kill(nnunet_folders, volumes):
    source = make_acdc(nnunet_folders / "acdc", volumes, range(1, 13))
    command = nnunet_command("nnUNetv2_plgcl_convert", "acdc", source, "-d", 27, "-np", 1)
    running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    staging = nnunet_folders / "raw" / ".Dataset027_ACDC.incomplete" / "imagesTr"
    while running.poll() is None and not any(not n.startswith(".") for n in names(staging)):
        time.sleep(0.001)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert running.returncode == -signal.SIGKILL, "killed before it was done"
    assert not (nnunet_folders / "raw" / "Dataset027_ACDC").exists()
    subprocess.run(command, check=True, capture_output=True)
    raw = nnunet_folders / "raw" / "Dataset027_ACDC"
    assert len(names(raw / "imagesTr")) == len(names(raw / "labelsTr")) == 24
    assert not any(name.startswith(".") for name in names(raw / "imagesTr"))
    verify_dataset_integrity(str(raw), num_processes=1)


@pytest.mark.parametrize("dataset", sorted(SOURCES.keys() - {"hippocampus"}))
def test_protocols_are_disjoint_and_nested(dataset):
    protocol = read_protocol(dataset)
    held_out = {*protocol.validation, *protocol.test}
    assert len(held_out) == len(protocol.validation) + len(protocol.test)
    by_size = sorted(protocol.labelled.items(), key=lambda item: int(item[0]))
    for number, patients in by_size:
        assert len(set(patients)) == int(number) and not set(patients) & held_out
    for (_, small), (_, large) in itertools.pairwise(by_size):
        assert set(small) < set(large)
    shares = {"acdc": (70, {7: 0.1, 14: 0.2, 3: 0.05}), "kits19": (147, {4: 0.025, 15: 0.1}),
              "crag": (156, {16: 0.1, 31: 0.2})}  # fmt: skip
    training, wanted = shares[dataset]
    for number, share in wanted.items():
        assert round(share * training) == number or abs(number / training - share) < 0.01


def damaged(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[:-200])
    return file


def not_an_image(file: Path) -> Path:
    file.write_bytes(gzip.compress(b"no image at all" * 100))
    return file


def other_labels(file: Path) -> Path:
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image + 3, str(file))
    return file


def other_geometry(file: Path) -> Path:
    image = sitk.ReadImage(str(file))
    image.SetSpacing([2.0, 2.0, 2.0])
    sitk.WriteImage(image, str(file))
    return file


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("patient001_frame01.nii.gz", damaged, "is truncated"),
        ("patient001_frame01_gt.nii.gz", damaged, "is truncated"),
        ("patient001_frame01.nii.gz", not_an_image, "is no NIfTI image"),
        ("patient001_frame01_gt.nii.gz", other_labels, "has label .*, but only 0 .background"),
        ("patient001_frame01_gt.nii.gz", other_geometry, "label's spacing"),
        ("patient001_frame04_gt.nii.gz", Path.unlink, "is missing, which Info.cfg names as ES"),
        ("Info.cfg", Path.unlink, "Info.cfg is missing"),
    ],
)
def test_a_bad_file_is_named(nnunet_folders, volumes, in_this_process, name, spoil, message):
    source = make_acdc(nnunet_folders / "acdc", volumes, [1, 2])
    file = source / "database" / "training" / "patient001" / name
    spoil(file)
    said = failure("acdc", source, "-d", 27)
    assert str(file) in said
    assert re.search(message, said)
    visible = [n for n in names(nnunet_folders / "raw") if not n.startswith(".")]
    assert not visible, "nothing that nnU-Net would take for a dataset"
    for part in (nnunet_folders / "raw").rglob("*Tr"):
        assert not any(n.startswith(".") for n in names(part)), "nothing half-written"


def test_a_mended_file_completes_the_conversion(nnunet_folders, volumes, in_this_process):
    source = make_acdc(nnunet_folders / "acdc", volumes, [1, 2])
    file = source / "database" / "training" / "patient001" / "patient001_frame01.nii.gz"
    whole = file.read_bytes()
    damaged(file)
    failure("acdc", source, "-d", 27)
    file.write_bytes(whole)
    convert("acdc", source, "-d", 27)
    assert len(names(nnunet_folders / "raw" / "Dataset027_ACDC" / "imagesTr")) == 4


def test_another_conversion_takes_nothing_over_from_an_interrupted_one(
    nnunet_folders, in_this_process
):
    source = make_acdc(nnunet_folders / "acdc", [tiny_volume(nnunet_folders)] * 2, range(1, 101))
    broken = source / "database" / "training" / "patient050" / "patient050_frame01.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    failure("acdc", source, "-d", 27)
    broken.write_bytes(whole)
    convert("acdc", source, "-d", 27, "--protocol", "paper")
    raw = nnunet_folders / "raw" / "Dataset027_ACDC"
    assert len(names(raw / "imagesTr")) == len(names(raw / "labelsTr")) == 160
    assert not set(names(raw / "imagesTr")) & set(names(raw / "imagesTs"))
    parts = ["dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs", "split.json"]
    assert names(raw) == parts


def test_a_replaced_file_is_converted_again(nnunet_folders, volumes, in_this_process):
    source = make_acdc(nnunet_folders / "acdc", volumes, [1, 2])
    broken = source / "database" / "training" / "patient002" / "patient002_frame01.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    failure("acdc", source, "-d", 27)
    replaced = source / "database" / "training" / "patient001" / "patient001_frame01.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(replaced)) + 1, str(replaced))
    broken.write_bytes(whole)
    convert("acdc", source, "-d", 27)
    written = (
        nnunet_folders / "raw" / "Dataset027_ACDC" / "imagesTr" / "patient001_frame01_0000.nii.gz"
    )
    np.testing.assert_array_equal(array(written), array(replaced))


def test_the_testing_folder_alone_has_no_training_case(nnunet_folders, volumes, in_this_process):
    source = make_acdc(nnunet_folders / "acdc", volumes, [101, 102]) / "database" / "testing"
    assert "holds no training case" in failure("acdc", source, "-d", 27)
    assert names(nnunet_folders / "raw") == []


def test_a_number_that_nnunet_knows_elsewhere_is_taken(nnunet_folders, volumes, in_this_process):
    (nnunet_folders / "preprocessed" / "Dataset027_Other").mkdir()
    source = make_acdc(nnunet_folders / "acdc", volumes, [1])
    assert "Number 27 is taken by" in failure("acdc", source, "-d", 27)


def test_other_mistakes_are_told_in_one_line(nnunet_folders, volumes, in_this_process, tmp_path):
    assert "There is no folder /nowhere" in failure("acdc", "/nowhere", "-d", 27)
    (tmp_path / "empty").mkdir()
    for dataset in SOURCES:
        assert f"{tmp_path}/empty is no " in failure(dataset, tmp_path / "empty", "-d", 27)
    source = make_acdc(nnunet_folders / "acdc", volumes, [1, 2])
    assert "lies between 1 and 999" in failure("acdc", source, "-d", 1000)
    assert "split needs" in failure("acdc", source, "-d", 27, "--protocol", "paper")
    convert("acdc", source, "-d", 27)
    assert "Number 27 is taken by" in failure("acdc", source, "-d", 27)
    assert "no 4D images" in failure(
        "crag", make_crag(nnunet_folders / "crag"), "-d", 6, "--cine", "--protocol", "paper"
    )


def test_a_target_that_cannot_be_written(nnunet_folders, volumes, in_this_process, monkeypatch):
    source = make_acdc(nnunet_folders / "acdc", volumes, [1])
    (nnunet_folders / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(nnunet_folders / "file"))
    assert str(nnunet_folders / "file") in failure("acdc", source, "-d", 27)
