"""Predictions of any origin on the same references, from the command line."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import write_raw_dataset

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.evaluation.metrics import surface_distances


@pytest.fixture
def folders(tmp_path, in_this_process):
    """References, and two predictions: moved by one voxel, and by three."""
    raw = tmp_path / "raw"
    for case in write_raw_dataset(raw)[:6]:
        label = sitk.ReadImage(raw / "labelsTr" / f"{case}.nii.gz")
        for name, shift in (("labels", 0), ("near", 1), ("far", 3)):
            (tmp_path / name).mkdir(exist_ok=True)
            moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(label), shift, 2))
            moved.CopyInformation(label)
            sitk.WriteImage(moved, tmp_path / name / f"{case}.nii.gz")
    return tmp_path


def words(folders, *more: object) -> list[str]:
    given = ("--predictions", f"far={folders / 'far'}", f"n<b>|$x$={folders / 'near'}", "--labels",
             folders / "labels", "-djfile", folders / "raw" / "dataset.json", "-np", 1, "-o",
             folders / "out", *more)  # fmt: skip
    return [str(word) for word in given]


def failure(arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        commands.compare(arguments)
    message = str(stopped.value.code)
    assert message.startswith("nnUNetv2_plgcl_compare: ") and "\n" not in message
    return message


def test_predictions_are_compared_without_a_training(folders, capsys):
    commands.compare(words(folders))
    printed = capsys.readouterr().out
    assert "| n<b>\\|$x$ |" in printed and "labelled" not in printed and "hours" not in printed
    with open(folders / "out" / "table.csv") as stream:
        table = {row["trainer"]: row for row in csv.DictReader(stream)}
    case = sorted((folders / "labels").iterdir())
    expected = []
    for file in case:
        near, reference = (sitk.ReadImage(folders / f / file.name) for f in ("near", "labels"))
        masks = [sitk.GetArrayFromImage(i) for i in (near, reference)]
        spacing = reference.GetSpacing()[::-1]
        expected += [surface_distances(masks[0] == k, masks[1] == k, spacing).hd95()
                     for k in (1, 2, 3)]  # fmt: skip
    assert float(table["n<b>|$x$"]["HD95"]) == pytest.approx(np.mean(expected))
    assert float(table["n<b>|$x$"]["p"]) == pytest.approx(2 / 2**6)  # six cases of one sign
    html = (folders / "out" / "report.html").read_text()
    assert "n&lt;b&gt;|$x$" in html and "<b>" not in html and "Cost" not in html
    assert len(list((folders / "out" / "figures").glob("cases_*.png"))) == 4


def test_json_is_all_that_is_printed(folders, capsys):
    commands.compare(words(folders, "--json", "--voxel"))
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((folders / "out" / "comparison.json").read_text())
    assert content["unit"] == "voxels" and len(content["scores"]) == 2 * 6 * 3 * 4
    far = [r["value"] for r in content["scores"] if (r["trainer"], r["metric"]) == ("far", "DSC")]
    (row,) = (row for row in content["results"] if row["trainer"] == "far")
    assert row["DSC"] == pytest.approx(np.mean(far)) and row["training (h)"] is None


def test_what_does_not_belong_together_is_refused_before_anything_is_evaluated(folders, capsys):
    first, *_ = sorted((folders / "near").iterdir())
    first.unlink()
    message = failure(words(folders))
    assert first.name.partition(".")[0] in message and "near" in message
    assert not (folders / "out").exists()
    (folders / "raw" / "dataset.json").write_text("{}")
    assert "file_ending" in failure(words(folders))
    for wrong in (
        ["--predictions", "a=b"],
        ["--predictions", "a", "--labels", "x", "-djfile", "y"],
        ["--predictions", "a=x", "a=y", "--labels", "x", "-djfile", "y"],
        words(folders, "-tr", "nnUNetTrainer"),
        words(folders, "--run"),
        ["-d", "1", "-c", "2d", "-f", "0"],
        ["-d", "1", "-c", "2d", "-f", "zero", "-tr", "nnUNetTrainer"],
    ):
        with pytest.raises(SystemExit) as stopped:
            commands.compare(wrong)
        assert stopped.value.code == 2
