"""The ACDC challenge's folders, its films, and the h5 files of other projects."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from converting import array, convert, failure, make_acdc, names, tiny_volume
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_plgcl.datasets.convert.acdc import recover_integers
from nnunetv2_plgcl.datasets.convert.run import read_protocol

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_acdc_becomes_a_dataset_that_nnunet_accepts(
    nnunet_folders, volumes, in_this_process, capsys
):
    source = make_acdc(nnunet_folders / "acdc", volumes, [1, 2, 101])
    convert("acdc", source, "-d", 27)
    raw = nnunet_folders / "raw" / "Dataset027_ACDC"
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
    assert names(nnunet_folders / "raw") == ["Dataset027_ACDC"], "no hidden folder is left"


def test_acdc_protocol_is_that_of_the_literature(
    nnunet_folders, in_this_process, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench.prepare import make_folds, require_raw

    source = make_acdc(nnunet_folders / "acdc", [tiny_volume(tmp_path)] * 2, range(1, 101))
    convert("acdc", source, "-d", 27, "--protocol", "paper")
    raw = nnunet_folders / "raw" / "Dataset027_ACDC"
    splits = json.loads(
        (nnunet_folders / "preprocessed" / "Dataset027_ACDC" / "splits_final.json").read_text()
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


def test_frames_of_the_film_become_unlabelled_images(
    nnunet_folders, volumes, in_this_process, monkeypatch
):
    from nnunetv2_plgcl.datasets.convert import run

    few = run.Protocol("a few", ["patient002"], ["patient003"], {"1": ["patient001"]})
    monkeypatch.setattr(run, "read_protocol", lambda dataset: few)
    source = make_acdc(nnunet_folders / "acdc", volumes, [1, 2, 3, 4], movie=True)
    assert "--cine needs --protocol paper" in failure("acdc", source, "-d", 27, "--cine")
    convert("acdc", source, "-d", 27, "--cine", "--protocol", "paper")
    raw = nnunet_folders / "raw" / "Dataset027_ACDC"
    assert names(raw / "imagesUn") == [
        f"patient00{p}_cine0{f}_0000.nii.gz" for p in (1, 4) for f in (2, 3, 5)
    ], "neither labelled frames nor those of validation and test patients"
    np.testing.assert_array_equal(
        array(raw / "imagesUn" / "patient001_cine03_0000.nii.gz"), array(volumes[0][0]) + 2
    )


@pytest.mark.parametrize("sliced", [False, True])
def test_h5_files_give_back_the_integers(
    acdc, nnunet_folders, volumes, in_this_process, sliced, capsys
):  # the phantom has no integers
    source = nnunet_folders / "h5"
    source.mkdir()
    image, label = map(array, volumes[0])
    scaled = ((image - image.min()) / float(image.max() - image.min())).astype(np.float32)
    parts = {f"_slice_{z}": z for z in range(len(image))} if sliced else {"": slice(None)}
    for end, z in parts.items():
        with h5py.File(source / f"patient001_frame01{end}.h5", "w") as file:
            file["image"], file["label"] = scaled[z], label[z]
    convert("acdc", source, "-d", 27)
    raw = nnunet_folders / "raw" / "Dataset027_ACDC"
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
