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


def test_another_place_is_a_warning_with_the_distance_in_voxels(folders, in_this_process, capsys):
    """nnU-Net compares voxels of equal index wherever they lie; rounded headers are no matter."""
    file = sorted((folders / "prediction").glob("*.nii.gz"))[0]
    image = sitk.ReadImage(str(file))
    edge = min(image.GetSpacing())

    def moved(by: float) -> str:
        image.SetOrigin([origin[0] + by, *origin[1:]])
        sitk.WriteImage(image, str(file))
        summary = run(folders)
        said = capsys.readouterr().out
        assert [f"warning {text}" in said for text in summary["warnings"]] in ([], [True])
        return " ".join(summary["warnings"])

    origin = image.GetOrigin()
    before = run(folders)
    assert moved(0.002) == ""
    assert f"{file} by up to {20 / edge:.3g} voxels" in moved(20)
    after = json.loads((folders / "prediction" / "plgcl_summary.json").read_text())
    assert after["mean"] == before["mean"]
    mirrored = np.reshape(image.GetDirection(), (3, 3)) * (-1, 1, 1)  # about its first column
    image.SetDirection(mirrored.ravel().tolist())
    across = 2 * image.GetSpacing()[0] * (image.GetWidth() - 1) / edge
    assert f"{across:.3g} voxels" in moved(0)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"background": "0", "RV": "1", "MYO": "2", "LV": "3"}, ["RV", "MYO", "LV"]),
        ({"background": 0, "heart": [1, 2, 3], "LV": 3}, ["heart", "LV"]),
        ({"0": "background", "1": "RV"}, None),
        ({"RV": 1}, None),
    ],
)
def test_labels_as_people_write_them(folders, in_this_process, capsys, labels, classes):
    """Numbers in quotes and regions without an order are read, what nnU-Net refuses is refused."""
    dataset = json.loads((folders / "raw" / "dataset.json").read_text())
    (folders / "raw" / "dataset.json").write_text(json.dumps({**dataset, "labels": labels}))
    if classes is None:
        message = failure(folders)
        assert 'nnU-Net refuses "labels"' in message
        assert ("nnU-Net v1" in message) == ("0" in labels)
        return
    summary = run(folders)
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[1 : 1 + len(classes)] == classes and len(summary["mean"]) == len(classes)


def test_hidden_files_of_macos_are_no_segmentations(folders, in_this_process):
    before = run(folders)
    for folder in ("prediction", "reference"):
        (folders / folder / "._x.nii.gz").write_bytes(b"\0\5\26\7")
    assert run(folders)["mean"] == before["mean"]


def picture_folders(tmp_path, ending, spacing=None):
    """Three references, and predictions that lie two pixels lower, of a format without spacing."""
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

    tmp_path.joinpath("raw").mkdir()
    labels = {"background": 0, "gland": 1}
    (tmp_path / "raw" / "dataset.json").write_text(
        json.dumps({"file_ending": ending, "labels": labels, "channel_names": {"0": "R"}})
    )
    volume = ending == ".tif"
    for name, shift in (("reference", 0), ("prediction", 2)):
        (tmp_path / name).mkdir()
        for case in range(3):
            mask = np.zeros((5 if volume else 1, 24, 24), np.uint8)
            mask[:, 4 + shift : 12 + shift, 6 : 14 + case] = 1
            file = str(tmp_path / name / f"c{case}{ending}")
            if volume:
                Tiff3DIO().write_seg(mask, file, {"spacing": spacing or (1, 1, 1)})
            else:
                NaturalImage2DIO().write_seg(mask, file, {})


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_distances_of_photographs_are_called_pixels(tmp_path, in_this_process, capsys, ending):
    picture_folders(tmp_path, ending)
    summary = run(tmp_path)
    assert summary["unit"] == "pixels" and summary["mean"]["1"]["HD95"] == 2
    assert "HD95 (pixels)" in capsys.readouterr().out
    assert ",pixels\n" in (tmp_path / "prediction" / "plgcl_summary.csv").read_text().replace(
        "\r", ""
    )


def test_tiff_volumes_have_the_spacing_of_the_file_beside_them(tmp_path, in_this_process):
    picture_folders(tmp_path, ".tif", spacing=(5.0, 0.5, 0.5))
    summary = run(tmp_path)
    assert summary["unit"] == "mm" and summary["mean"]["1"]["HD95"] == 1
    for file in (tmp_path / "reference").glob("*.json"):  # as in gt_segmentations
        file.unlink()
    assert run(tmp_path)["mean"]["1"]["HD95"] == 1
    next((tmp_path / "prediction").glob("c*.json")).unlink()
    summary = run(tmp_path)
    assert summary["unit"] == "voxels" and summary["mean"]["1"]["HD95"] == 2
    assert "Some files have no spacing" in summary["warnings"][0]


def test_a_mask_saved_in_colour_is_refused(tmp_path, in_this_process):
    from skimage import io

    picture_folders(tmp_path, ".png")
    file = tmp_path / "reference" / "c0.png"
    io.imsave(file, np.stack([io.imread(file)] * 3, -1), check_contrast=False)
    assert f"{file} has 3 channels; a segmentation has one" in failure(tmp_path)
