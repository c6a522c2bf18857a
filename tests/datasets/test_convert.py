"""Downloads in their official layout, made of real images where they are at hand."""

import gzip
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image
from training import nnunet_command

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets.convert.acdc import recover_integers
from nnunetv2_plgcl.datasets.convert.run import SOURCES, read_protocol
from nnunetv2_plgcl.datasets.phantom import write_phantom

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> list[tuple[Path, Path]]:
    """Images and labels of one heart after the other: real ones, else the phantom."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "acdc"
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


def test_acdc_becomes_a_dataset_that_nnunet_accepts(folders, volumes, in_this_process, capsys):
    source = make_acdc(folders / "acdc", volumes, [1, 2, 101])
    convert("acdc", source, "-d", 27)
    raw = folders / "raw" / "Dataset027_ACDC"
    assert names(raw / "labelsTr") == [
        f"patient00{p}_frame0{f}.nii.gz" for p in (1, 2) for f in (1, 4)
    ]
    assert names(raw / "imagesTs") == [f"patient101_frame0{f}_0000.nii.gz" for f in (1, 4)]
    np.testing.assert_array_equal(
        array(raw / "imagesTr" / "patient001_frame04_0000.nii.gz"), array(volumes[1][0])
    )
    dataset = json.loads((raw / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert dataset["numTraining"] == 4 and dataset["channel_names"] == {"0": "MRI"}
    verify_dataset_integrity(str(raw), num_processes=1)
    out = capsys.readouterr().out
    assert "4 training, 2 test cases found" in out
    assert "Missing of the official release: patient003, patient004" in out and "more." in out
    assert names(folders / "raw") == ["Dataset027_ACDC"], "no hidden folder is left"


def test_real_worker_processes_and_a_kill(folders, volumes):
    source = make_acdc(folders / "acdc", volumes, range(1, 13))
    command = nnunet_command("nnUNetv2_plgcl_convert", "acdc", source, "-d", 27, "-np", 1)
    running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    staging = folders / "raw" / ".Dataset027_ACDC.incomplete" / "imagesTr"
    while running.poll() is None and not any(not n.startswith(".") for n in names(staging)):
        time.sleep(0.001)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert running.returncode == -signal.SIGKILL, "killed before it was done"
    assert not (folders / "raw" / "Dataset027_ACDC").exists()
    subprocess.run(command, check=True, capture_output=True)
    raw = folders / "raw" / "Dataset027_ACDC"
    assert len(names(raw / "imagesTr")) == len(names(raw / "labelsTr")) == 24
    assert not any(name.startswith(".") for name in names(raw / "imagesTr"))
    verify_dataset_integrity(str(raw), num_processes=1)


def test_acdc_protocol_is_that_of_the_literature(
    folders, in_this_process, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench.prepare import make_folds, require_raw

    source = make_acdc(folders / "acdc", [tiny_volume(tmp_path)] * 2, range(1, 101))
    convert("acdc", source, "-d", 27, "--protocol", "paper")
    raw = folders / "raw" / "Dataset027_ACDC"
    splits = json.loads(
        (folders / "preprocessed" / "Dataset027_ACDC" / "splits_final.json").read_text()
    )
    assert [len(fold["train"]) for fold in splits] == [14, 28, 6], "7, 14 and 3 patients"
    for fold in splits:
        assert len(fold["val"]) == 20 and len(fold["train"]) + len(fold["unlabelled"]) == 140
    assert set(splits[2]["train"]) < set(splits[0]["train"]) < set(splits[1]["train"])
    assert len(names(raw / "imagesTr")) == 160
    assert len(names(raw / "imagesTs")) == len(names(raw / "labelsTs")) == 40
    assert "fold 0: 7 labelled patients" in capsys.readouterr().out
    for_benchmark = require_raw(raw)
    folds = {
        f.labelled: f.cases for f in make_folds(for_benchmark, r"patient\d+") if f.split == "val"
    }
    assert [folds[number] for number in ("7", "14", "3")] == splits


def test_acdc_lists_agree_with_the_published_ones(acdc):
    """The shared data's split.json was written from the lists of the literature."""
    published, ours = json.loads((acdc / "split.json").read_text()), read_protocol("acdc")
    patients = {
        key: {c.split("_")[0] for c in cases} for key, cases in published["labelled"].items()
    }
    assert {key: set(cases) for key, cases in ours.labelled.items()} == patients
    assert set(ours.validation) == {case.split("_")[0] for case in published["val"]}
    train = {case.split("_")[0] for case in published["train"]}
    assert not set(ours.test) & train and len(ours.test) == 20


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


def test_frames_of_the_film_become_unlabelled_images(
    folders, volumes, in_this_process, monkeypatch
):
    from nnunetv2_plgcl.datasets.convert import run

    few = run.Protocol("a few", ["patient002"], ["patient003"], {"1": ["patient001"]})
    monkeypatch.setattr(run, "read_protocol", lambda dataset: few)
    source = make_acdc(folders / "acdc", volumes, [1, 2, 3, 4], movie=True)
    assert "--cine needs --protocol paper" in failure("acdc", source, "-d", 27, "--cine")
    convert("acdc", source, "-d", 27, "--cine", "--protocol", "paper")
    raw = folders / "raw" / "Dataset027_ACDC"
    assert names(raw / "imagesUn") == [
        f"patient00{p}_cine0{f}_0000.nii.gz" for p in (1, 4) for f in (2, 3, 5)
    ], "neither labelled frames nor those of validation and test patients"
    np.testing.assert_array_equal(
        array(raw / "imagesUn" / "patient001_cine03_0000.nii.gz"), array(volumes[0][0]) + 2
    )


@pytest.mark.parametrize("sliced", [False, True])
def test_h5_files_give_back_the_integers(
    acdc, folders, volumes, in_this_process, sliced, capsys
):  # the phantom has no integers
    source = folders / "h5"
    source.mkdir()
    image, label = map(array, volumes[0])
    scaled = ((image - image.min()) / float(image.max() - image.min())).astype(np.float32)
    parts = {f"_slice_{z}": z for z in range(len(image))} if sliced else {"": slice(None)}
    for end, z in parts.items():
        with h5py.File(source / f"patient001_frame01{end}.h5", "w") as file:
            file["image"], file["label"] = scaled[z], label[z]
    convert("acdc", source, "-d", 27)
    raw = folders / "raw" / "Dataset027_ACDC"
    seen = array(raw / "imagesTr" / "patient001_frame01_0000.nii.gz")
    assert seen.dtype == np.uint16
    factor = np.gcd.reduce(np.unique(image - image.min()))
    np.testing.assert_array_equal(seen, (image - image.min()) // factor)
    np.testing.assert_array_equal(array(raw / "labelsTr" / "patient001_frame01.nii.gz"), label)
    assert "do not keep the voxel spacing: 1 x 1 x 10 mm" in capsys.readouterr().out
    if sliced:
        (source / "patient001_frame01_slice_2.h5").unlink()
        assert "slice 2 of patient001_frame01 is missing" in failure("acdc", source, "-d", 28)


@pytest.mark.parametrize("highest", [7, 255, 1023, 30000])
def test_integers_are_recovered_exactly(highest):
    generator = np.random.default_rng(highest)
    image = generator.integers(0, highest + 1, (3, 40, 40))
    image[0, 0, :3] = 0, 1, highest
    scaled = (image / highest).astype(np.float32)
    np.testing.assert_array_equal(recover_integers(scaled), image)
    assert (recover_integers(np.full((2, 2), 0.5, np.float32)) == 0).all()
    real = generator.random((3, 40, 40), np.float32)
    np.testing.assert_array_equal(recover_integers(real), real)


def make_kits(folder: Path, pair, cases) -> Path:
    for number in cases:
        case = folder / f"case_{number:05d}"
        case.mkdir(parents=True)
        shutil.copy(pair[0], case / "imaging.nii.gz")
        if number < 210:
            label = sitk.ReadImage(str(pair[1]))
            sitk.WriteImage(sitk.Clamp(label, upperBound=2), str(case / "segmentation.nii.gz"))
    return folder


def test_kits19(folders, volumes, in_this_process, capsys):
    convert("kits19", make_kits(folders / "kits" / "data", volumes[0], [0, 7, 210]).parent, "-d", 5)
    raw = folders / "raw" / "Dataset005_KiTS19"
    assert names(raw / "imagesTr") == ["case_00000_0000.nii.gz", "case_00007_0000.nii.gz"]
    assert names(raw / "imagesTs") == ["case_00210_0000.nii.gz"] and not (raw / "labelsTs").exists()
    dataset = json.loads((raw / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "CT"}
    assert dataset["labels"] == {"background": 0, "kidney": 1, "tumor": 2}
    verify_dataset_integrity(str(raw), num_processes=1)


def test_kits19_protocol_hides_labels_from_planning(folders, in_this_process, tmp_path, capsys):
    convert(
        "kits19", make_kits(folders / "kits", tiny_volume(tmp_path), range(210)), "-d", 5,
        "--protocol", "paper",
    )  # fmt: skip
    raw = folders / "raw" / "Dataset005_KiTS19"
    preprocessed = folders / "preprocessed" / "Dataset005_KiTS19"
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert [len(f["train"]) for f in splits] == [4, 15] and [len(f["val"]) for f in splits] == [
        21,
        21,
    ]
    assert [len(f["unlabelled"]) for f in splits] == [11, 0]
    assert "then nnUNetv2_plgcl_preprocess -d 5" in capsys.readouterr().out
    assert len(names(raw / "labelsTr")) == len(names(raw / "imagesTr")) == 15 + 21
    assert len(names(raw / "imagesUn")) == len(names(raw / "labelsUn")) == 147 - 15
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 36
    commands.split(["-d", "5", "--undo"])
    assert len(names(raw / "labelsTr")) == 168 and not (raw / "imagesUn").exists()
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert [len(fold["unlabelled"]) for fold in splits] == [143, 132]


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


@pytest.mark.parametrize("test_name", ["valid", "test"])
def test_crag(folders, in_this_process, test_name):
    source = make_crag(folders / "crag", test_name=test_name)
    convert("crag", source, "-d", 6)
    raw = folders / "raw" / "Dataset006_CRAG"
    image, _ = NaturalImage2DIO().read_images([str(raw / "imagesTr" / "train_2_0000.png")])
    original = np.asarray(Image.open(source / "train" / "Images" / "train_2.png"))
    np.testing.assert_array_equal(image[:, 0].transpose(1, 2, 0), original)
    label, _ = NaturalImage2DIO().read_seg(str(raw / "labelsTs" / "test_1.png"))
    instances = np.asarray(Image.open(source / test_name / "Annotation" / "test_1.png"))
    np.testing.assert_array_equal(label[0, 0], instances > 0)
    verify_dataset_integrity(str(raw), num_processes=1)


def test_crag_protocol_takes_the_official_test_set(folders, in_this_process):
    source = make_crag(folders / "crag", range(1, 174))
    for number in range(41, 174):
        for kind in ("Images", "Annotation"):
            (source / "valid" / kind / f"test_{number}.png").unlink()
    convert("crag", source, "-d", 6, "--protocol", "paper")
    splits = json.loads(
        (folders / "preprocessed" / "Dataset006_CRAG" / "splits_final.json").read_text()
    )
    assert [len(fold["train"]) for fold in splits] == [16, 31]
    assert len(names(folders / "raw" / "Dataset006_CRAG" / "labelsTs")) == 40


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
def test_a_bad_file_is_named(folders, volumes, in_this_process, name, spoil, message):
    source = make_acdc(folders / "acdc", volumes, [1, 2])
    file = source / "database" / "training" / "patient001" / name
    spoil(file)
    said = failure("acdc", source, "-d", 27)
    assert str(file) in said
    assert re.search(message, said)
    visible = [n for n in names(folders / "raw") if not n.startswith(".")]
    assert not visible, "nothing that nnU-Net would take for a dataset"
    for part in (folders / "raw").rglob("*Tr"):
        assert not any(n.startswith(".") for n in names(part)), "nothing half-written"


def test_a_mended_file_completes_the_conversion(folders, volumes, in_this_process):
    source = make_acdc(folders / "acdc", volumes, [1, 2])
    file = source / "database" / "training" / "patient001" / "patient001_frame01.nii.gz"
    whole = file.read_bytes()
    damaged(file)
    failure("acdc", source, "-d", 27)
    file.write_bytes(whole)
    convert("acdc", source, "-d", 27)
    assert len(names(folders / "raw" / "Dataset027_ACDC" / "imagesTr")) == 4


def test_another_conversion_takes_nothing_over_from_an_interrupted_one(folders, in_this_process):
    source = make_acdc(folders / "acdc", [tiny_volume(folders)] * 2, range(1, 101))
    broken = source / "database" / "training" / "patient050" / "patient050_frame01.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    failure("acdc", source, "-d", 27)
    broken.write_bytes(whole)
    convert("acdc", source, "-d", 27, "--protocol", "paper")
    raw = folders / "raw" / "Dataset027_ACDC"
    assert len(names(raw / "imagesTr")) == len(names(raw / "labelsTr")) == 160
    assert not set(names(raw / "imagesTr")) & set(names(raw / "imagesTs"))
    parts = ["dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs", "split.json"]
    assert names(raw) == parts


def test_a_replaced_file_is_converted_again(folders, volumes, in_this_process):
    source = make_acdc(folders / "acdc", volumes, [1, 2])
    broken = source / "database" / "training" / "patient002" / "patient002_frame01.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    failure("acdc", source, "-d", 27)
    replaced = source / "database" / "training" / "patient001" / "patient001_frame01.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(replaced)) + 1, str(replaced))
    broken.write_bytes(whole)
    convert("acdc", source, "-d", 27)
    written = folders / "raw" / "Dataset027_ACDC" / "imagesTr" / "patient001_frame01_0000.nii.gz"
    np.testing.assert_array_equal(array(written), array(replaced))


def test_the_testing_folder_alone_has_no_training_case(folders, volumes, in_this_process):
    source = make_acdc(folders / "acdc", volumes, [101, 102]) / "database" / "testing"
    assert "holds no training case" in failure("acdc", source, "-d", 27)
    assert names(folders / "raw") == []


def test_a_number_that_nnunet_knows_elsewhere_is_taken(folders, volumes, in_this_process):
    (folders / "preprocessed" / "Dataset027_Other").mkdir()
    source = make_acdc(folders / "acdc", volumes, [1])
    assert "Number 27 is taken by" in failure("acdc", source, "-d", 27)


def test_other_mistakes_are_told_in_one_line(folders, volumes, in_this_process, tmp_path):
    assert "There is no folder /nowhere" in failure("acdc", "/nowhere", "-d", 27)
    (tmp_path / "empty").mkdir()
    for dataset in SOURCES:
        assert f"{tmp_path}/empty is no " in failure(dataset, tmp_path / "empty", "-d", 27)
    source = make_acdc(folders / "acdc", volumes, [1, 2])
    assert "lies between 1 and 999" in failure("acdc", source, "-d", 1000)
    assert "split needs" in failure("acdc", source, "-d", 27, "--protocol", "paper")
    convert("acdc", source, "-d", 27)
    assert "Number 27 is taken by" in failure("acdc", source, "-d", 27)
    assert "no 4D images" in failure(
        "crag", make_crag(folders / "crag"), "-d", 6, "--cine", "--protocol", "paper"
    )


def test_names_that_collide(folders, in_this_process):
    source = make_crag(folders / "crag")
    for kind in ("Images", "Annotation"):
        shutil.copy(
            source / "train" / kind / "train_1.png", source / "valid" / kind / "train_1.png"
        )
    assert "would both become train_1: rename one" in failure("crag", source, "-d", 6)
    assert names(folders / "raw") == []


def test_a_target_that_cannot_be_written(folders, volumes, in_this_process, monkeypatch):
    source = make_acdc(folders / "acdc", volumes, [1])
    (folders / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(folders / "file"))
    assert str(folders / "file") in failure("acdc", source, "-d", 27)
