"""The KiTS19 challenge's folders, made of real volumes where they are at hand."""

import json
import shutil
from pathlib import Path

import SimpleITK as sitk
from converting import convert, names, tiny_volume
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_plgcl import commands


def make_kits(folder: Path, pair, cases) -> Path:
    for number in cases:
        case = folder / f"case_{number:05d}"
        case.mkdir(parents=True)
        shutil.copy(pair[0], case / "imaging.nii.gz")
        if number < 210:
            label = sitk.ReadImage(str(pair[1]))
            sitk.WriteImage(sitk.Clamp(label, upperBound=2), str(case / "segmentation.nii.gz"))
    return folder


def test_kits19(nnunet_folders, volumes, in_this_process, capsys):
    source = make_kits(nnunet_folders / "kits" / "data", volumes[0], [0, 7, 210]).parent
    convert("kits19", source, "-d", 5)
    raw = nnunet_folders / "raw" / "Dataset005_KiTS19"
    assert names(raw / "imagesTr") == ["case_00000_0000.nii.gz", "case_00007_0000.nii.gz"]
    assert names(raw / "imagesTs") == ["case_00210_0000.nii.gz"] and not (raw / "labelsTs").exists()
    dataset = json.loads((raw / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "CT"}
    assert dataset["labels"] == {"background": 0, "kidney": 1, "tumor": 2}
    verify_dataset_integrity(str(raw), num_processes=1)


def test_kits19_protocol_hides_labels_from_planning(
    nnunet_folders, in_this_process, tmp_path, capsys
):
    source = make_kits(nnunet_folders / "kits", tiny_volume(tmp_path), range(210))
    convert("kits19", source, "-d", 5, "--protocol", "paper")
    raw = nnunet_folders / "raw" / "Dataset005_KiTS19"
    preprocessed = nnunet_folders / "preprocessed" / "Dataset005_KiTS19"
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert [len(fold["train"]) for fold in splits] == [4, 15]
    assert [len(fold["val"]) for fold in splits] == [21, 21]
    assert [len(fold["unlabelled"]) for fold in splits] == [11, 0]
    assert "then nnUNetv2_plgcl_preprocess -d 5" in capsys.readouterr().out
    assert len(names(raw / "labelsTr")) == len(names(raw / "imagesTr")) == 15 + 21
    assert len(names(raw / "imagesUn")) == len(names(raw / "labelsUn")) == 147 - 15
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 36
    commands.split(["-d", "5", "--undo"])
    assert len(names(raw / "labelsTr")) == 168 and not (raw / "imagesUn").exists()
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert [len(fold["unlabelled"]) for fold in splits] == [143, 132]
