"""Downloads in their official layout, made of real images where they are at hand."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHARED_ACDC
from PIL import Image

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets.phantom import write_phantom


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> list[tuple[Path, Path]]:
    """Images and labels of one heart after the other: real ones, else the phantom."""
    shared = SHARED_ACDC
    if not shared.is_dir():
        shared = tmp_path_factory.mktemp("phantom")
        write_phantom(shared, training=3, test=0)
    return [
        (shared / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz"), label)
        for label in sorted((shared / "labelsTr").glob("*.nii.gz"))[:6]
    ]


def make_acdc(folder: Path, volumes, patients, movie: bool = False) -> Path:
    """database/training/patientNNN as the challenge hands it out."""
    for number in patients:
        split = "training" if number <= 100 else "testing"
        patient = folder / "database" / split / f"patient{number:03d}"
        patient.mkdir(parents=True)
        (patient / "Info.cfg").write_text("ED: 1\nES: 4\nGroup: DCM\nHeight: 184.0\nNbFrame: 5\n")
        for frame, pair in zip((1, 4), volumes, strict=False):
            for source, end in zip(pair, ("", "_gt"), strict=True):
                shutil.copy(source, patient / f"{patient.name}_frame{frame:02d}{end}.nii.gz")
        if movie:
            image = sitk.ReadImage(str(volumes[0][0]))
            frames = [image + frame for frame in range(5)]
            sitk.WriteImage(sitk.JoinSeries(frames), str(patient / f"{patient.name}_4d.nii.gz"))
    return folder


def tiny_volume(folder: Path) -> tuple[Path, Path]:
    array = np.random.default_rng(0).integers(0, 255, (2, 8, 8)).astype(np.uint8)
    pair = folder / "tiny.nii.gz", folder / "tiny_gt.nii.gz"
    for file, values in zip(pair, (array, array % 4), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(file))
    return pair


def convert(*arguments: object) -> None:
    commands.convert([str(a) for a in arguments])


def failure(*arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        convert(*arguments)
    message = str(stopped.value.code)
    assert message.startswith("nnUNetv2_plgcl_convert: ") and "\n" not in message
    return message


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def array(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def make_crag(folder: Path, numbers=(1, 2), test_name="valid") -> Path:
    generator = np.random.default_rng(0)
    for split, part in (("train", "train"), (test_name, "test")):
        for kind in ("Images", "Annotation"):
            (folder / split / kind).mkdir(parents=True)
        for number in numbers:
            name = f"{part}_{number}.png"
            image = generator.integers(0, 256, (40, 50, 3), np.uint8)
            instances = np.zeros((40, 50), np.uint8)
            instances[5:10, 5:20], instances[20:30, 30:45] = 1, 7
            Image.fromarray(image).save(folder / split / "Images" / name)
            Image.fromarray(instances).save(folder / split / "Annotation" / name)
    return folder
