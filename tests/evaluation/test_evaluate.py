"""A folder of predictions from the command line, beside nnU-Net's own evaluation."""

import csv
import json
import math
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import write_raw_dataset
from medpy.metric import binary as medpy
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from training import nnunet_command

from nnunetv2_plgcl import commands


@pytest.fixture
def folders(tmp_path):
    """References, and segmentations of other times of the heart as predictions for them."""
    raw = tmp_path / "raw"
    cases = write_raw_dataset(raw)[:4]
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    reference.mkdir()
    prediction.mkdir()
    for case in cases:
        label = sitk.ReadImage(str(raw / "labelsTr" / f"{case}.nii.gz"))
        sitk.WriteImage(label, str(reference / f"{case}.nii.gz"))
        moved = np.roll(sitk.GetArrayFromImage(label), (3, 2), (1, 2))
        image = sitk.GetImageFromArray(moved)
        image.CopyInformation(label)
        sitk.WriteImage(image, str(prediction / f"{case}.nii.gz"))
    return tmp_path


def change(file, function) -> None:
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(function(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


def arguments(folders) -> list[str]:
    return [str(folders / "reference"), str(folders / "prediction"),
            "-djfile", str(folders / "raw" / "dataset.json")]  # fmt: skip


def run(folders, *more: str) -> dict:
    commands.evaluate([*arguments(folders), *more])
    return json.loads((folders / "prediction" / "plgcl_summary.json").read_text())


def failure(folders, *more: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        commands.evaluate([*arguments(folders), *more])
    message = str(stopped.value.code)
    assert message.startswith("nnUNetv2_plgcl_evaluate: ") and "\n" not in message
    return message


def array(file) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.mark.parametrize("voxel", [False, True])
def test_overlap_is_that_of_nnunet_and_distances_are_those_of_medpy(
    folders, in_this_process, voxel, capsys
):
    summary = run(folders, *(["--voxel"] if voxel else []))
    theirs = compute_metrics_on_folder(
        str(folders / "reference"), str(folders / "prediction"), None, SimpleITKIO(), ".nii.gz",
        [1, 2, 3], num_processes=1,
    )  # fmt: skip
    for key in ("1", "2", "3"):
        for name, value in theirs["mean"][int(key)].items():
            assert summary["mean"][key][name] == pytest.approx(value)
    for case in summary["metric_per_case"]:
        reference, prediction = (array(case[f"{k}_file"]) for k in ("reference", "prediction"))
        spacing = sitk.ReadImage(case["reference_file"]).GetSpacing()[::-1]
        for key, metrics in case["metrics"].items():
            masks = prediction == int(key), reference == int(key)
            for name, function in (("HD95", "hd95"), ("ASD", "asd"), ("ASSD", "assd")):
                expected = getattr(medpy, function)(*masks, voxelspacing=None if voxel else spacing)
                assert metrics[name] == pytest.approx(expected, abs=1e-6)
    dices = [case["metrics"]["1"]["Dice"] for case in summary["metric_per_case"]]
    assert summary["std"]["1"]["Dice"] == pytest.approx(np.std(dices))
    out = capsys.readouterr().out
    assert ("HD95 (voxels)" if voxel else "HD95 (mm)") in out and "RV" in out
    assert f"{np.mean(dices):.4f} ± {np.std(dices):.4f}" in out


def test_the_csv_file_has_a_row_for_each_number(folders, in_this_process):
    summary = run(folders)
    with open(folders / "prediction" / "plgcl_summary.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 3 * 4 and set(rows[0]) == {"case", "class", "metric", "value", "unit"}
    assert summary["unit"] == "mm"
    for row in rows:
        assert row["unit"] == ("" if row["metric"] == "Dice" else "mm")
        (case,) = (
            c for c in summary["metric_per_case"] if c["prediction_file"].endswith(row["case"])
        )
        assert float(row["value"]) == case["metrics"][row["class"]][row["metric"]]


def test_empty_masks_are_counted_and_leave_the_means_alone(folders, in_this_process, capsys):
    before = run(folders)
    first, second, third, _ = sorted((folders / "prediction").glob("*.nii.gz"))
    change(first, lambda a: np.where(a == 1, 0, a))
    change(folders / "reference" / second.name, lambda a: np.where(a == 1, 0, a))
    for folder in ("prediction", "reference"):
        change(folders / folder / third.name, lambda a: np.where(a == 1, 0, a))
    summary = run(folders)
    assert summary["empty"]["1"] == {"prediction": 1, "reference": 1, "both": 1}
    assert summary["empty"]["2"] == {"prediction": 0, "reference": 0, "both": 0}
    per_case = [case["metrics"]["1"] for case in summary["metric_per_case"]]
    assert [m["empty"] for m in per_case] == ["prediction", "reference", "both", None]
    assert per_case[0]["Dice"] == per_case[1]["Dice"] == 0 and math.isnan(per_case[2]["Dice"])
    assert all(math.isnan(m["HD95"]) for m in per_case[:3])
    assert summary["mean"]["1"]["HD95"] == before["metric_per_case"][3]["metrics"]["1"]["HD95"]
    assert summary["mean"]["1"]["Dice"] == pytest.approx((0 + 0 + per_case[3]["Dice"]) / 3)
    assert "empty prediction" in capsys.readouterr().out


def test_regions_and_the_ignore_label_are_those_of_nnunet(folders, in_this_process):
    dataset = json.loads((folders / "raw" / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "heart": [1, 2], "MYO": 2, "ignore": 3}
    dataset["regions_class_order"] = [1, 2]
    (folders / "raw" / "dataset.json").write_text(json.dumps(dataset))
    for file in (folders / "prediction").glob("*.nii.gz"):
        change(file, lambda a: np.where(a == 3, 0, a))
    summary = run(folders)
    case = summary["metric_per_case"][0]
    reference, prediction = (array(case[f"{k}_file"]) for k in ("reference", "prediction"))
    counts = reference != 3
    heart = [np.isin(labels, (1, 2)) & counts for labels in (prediction, reference)]
    assert case["metrics"]["(1, 2)"]["Dice"] == pytest.approx(medpy.dc(*heart))
    spacing = sitk.ReadImage(case["reference_file"]).GetSpacing()[::-1]
    expected = medpy.hd95(*heart, voxelspacing=spacing)
    assert case["metrics"]["(1, 2)"]["HD95"] == pytest.approx(expected, abs=1e-6)


def test_mistakes_are_told_in_one_line(folders, in_this_process):
    files = sorted((folders / "prediction").glob("*.nii.gz"))
    change(files[0], lambda a: np.where(a == 1, 9, a))
    assert f"{files[0]} has label 9, unknown to dataset.json" in failure(folders)
    change(files[0], lambda a: np.where(a == 9, 1.5, a).astype(np.float32))
    assert f"{files[0]} has label 1.5, unknown to dataset.json" in failure(folders)
    change(files[0], lambda a: np.where(a == 1.5, 1, a).astype(np.uint8))
    reference = folders / "reference" / files[1].name
    change(reference, lambda a: np.where(a == 1, 7, a))
    assert f"{reference} has label 7, unknown to dataset.json" in failure(folders)
    change(reference, lambda a: np.where(a == 7, 1, a))
    image = sitk.ReadImage(str(files[0]))
    origin = image.GetOrigin()
    image.SetOrigin([x + 50 for x in origin])
    sitk.WriteImage(image, str(files[0]))
    assert f"{files[0]} has origin" in failure(folders)
    image.SetOrigin(origin)
    image.SetDirection([0, 1, 0, 1, 0, 0, 0, 0, 1])
    sitk.WriteImage(image, str(files[0]))
    assert f"{files[0]} has direction" in failure(folders)
    image.SetSpacing([3, 3, 3])
    sitk.WriteImage(image, str(files[0]))
    assert f"{files[0]} has spacing" in failure(folders)
    sitk.WriteImage(image[1:], str(files[0]))
    assert f"{files[0]} has shape" in failure(folders)
    files[0].unlink()
    assert f"{folders}/prediction lacks {files[0].name}" in failure(folders)
    for file in files[1:]:
        file.unlink()
    assert f"no file *.nii.gz in {folders}/prediction" in failure(folders)
    for output in ("table.txt", str(folders / "nowhere" / "table.json")):
        with pytest.raises(SystemExit) as stopped:
            commands.evaluate([*arguments(folders), "-o", output])
        assert stopped.value.code == 2


def test_the_command_with_worker_processes(folders):
    done = subprocess.run(
        [*nnunet_command("nnUNetv2_plgcl_evaluate"), *arguments(folders), "-np", "2",
         "-o", str(folders / "scores.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Written:" in done.stdout and (folders / "scores.csv").is_file()
    alone = folders / "prediction" / "plgcl_summary.json"
    assert not alone.exists()
