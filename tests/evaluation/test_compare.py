"""Real (tiny) trainings of nnU-Net's trainer and ours, compared from the command line."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from comparing import OURS, STOCK, arguments, change_json, failure, fold_of, read_csv
from conftest import TINY, add_island

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets.raw import images_by_case
from nnunetv2_plgcl.datasets.unlabelled import preprocessed_cases
from nnunetv2_plgcl.evaluation import launch, runs
from nnunetv2_plgcl.record import FILE as TRAINING


def test_scores_are_those_of_nnunet_and_repetitions_are_averaged_first(trained):
    scores = read_csv(trained.base / "compared" / "scores.csv")
    dice = [row for row in scores if row["metric"] == "DSC"]
    assert len(dice) == 2 * 2 * len(trained.split["val"]) * 3
    names = {name: str(v) for name, v in trained.dataset_json()["labels"].items()}
    for row in dice:
        folder = fold_of(trained, row["trainer"], int(row["seed"])) / "validation"
        of_nnunet = json.loads((folder / "summary.json").read_text())["metric_per_case"]
        (case,) = (c for c in of_nnunet if Path(c["prediction_file"]).name.startswith(row["case"]))
        assert float(row["value"]) == pytest.approx(case["metrics"][names[row["class"]]]["Dice"])
    table = {row["trainer"]: row for row in read_csv(trained.base / "compared" / "table.csv")}
    for trainer in (STOCK, OURS):
        values = [float(row["value"]) for row in dice if row["trainer"] == trainer]
        assert float(table[trainer]["DSC"]) == pytest.approx(np.mean(values))
    printed = (trained.base / "printed.txt").read_text()
    assert f"{100 * float(table[OURS]['DSC']):.2f} [" in printed
    assert f"{len(trained.split['train'])} (40 %)" in printed  # 4 labelled, 6 unlabelled
    latex = (trained.base / "compared" / "table.tex").read_text()
    assert r"nnU-Net\_tiny" in latex and r"PLGCL\_tiny" in latex and r"\toprule" in latex


def test_repetitions_differ_in_the_seed_alone(trained):
    plans = {
        seed: json.loads((fold_of(trained, OURS, seed).parent / "plans.json").read_text())
        for seed in (0, 1)
    }
    assert plans[1]["configurations"][TINY].pop("plgcl") == {"seed": 1}
    assert plans[0]["configurations"] == plans[1]["configurations"]
    debug = json.loads((fold_of(trained, OURS, 1) / "debug.json").read_text())
    assert "seed=1" in debug["config"]


def test_cost_and_labelled_cases_are_noted_for_every_trainer(trained):
    for trainer in (STOCK, OURS):
        record = json.loads((fold_of(trained, trainer) / runs.RECORD).read_text())
        assert record[runs.LABELLED] == trained.split["train"]
        assert 2**27 < record[runs.PEAK_MEMORY] < 2**35
    for row in read_csv(trained.base / "compared" / "table.csv"):
        assert 0 < float(row["training (h)"]) < 1 and float(row["peak memory (GiB)"]) > 0.1


def test_finished_runs_are_not_trained_again(copy, capsys):
    finals = [fold_of(copy, t, s) / "checkpoint_final.pth" for t in (STOCK, OURS) for s in (0, 1)]
    before = [file.stat().st_mtime_ns for file in finals]
    commands.compare(arguments(copy.base / "out", "--run", "--seeds", 2, "-device", "cpu"))
    assert [file.stat().st_mtime_ns for file in finals] == before
    for name in ("table.md", "table.csv", "scores.csv"):
        assert (copy.base / "out" / name).read_text().split("hours")[0] == (
            copy.base / "compared" / name
        ).read_text().split("hours")[0]


def test_predictions_of_test_images_are_compared(copy, here, tmp_path, capsys):
    """With the validation cases as test cases everything must come out as in validation."""
    raw = copy.base / "nnUNet_raw" / copy.name
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for case in copy.split["val"]:
        shutil.copy(raw / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "images")
        shutil.copy(raw / "labelsTr" / f"{case}.nii.gz", tmp_path / "labels")
        for file in (f"images/._{case}_0000.nii.gz", f"labels/._{case}.nii.gz"):  # of a Mac
            (tmp_path / file).write_bytes(b"\0\5\26\7")
    commands.compare(
        arguments(copy.base / "out", "--test", tmp_path / "images", tmp_path / "labels",
                  "-device", "cpu")
    )  # fmt: skip
    scores = read_csv(copy.base / "out" / "scores.csv")
    validation = read_csv(copy.base / "compared" / "scores.csv")
    assert scores == [row for row in validation if row["seed"] == "0"]
    assert "2 test cases" in (copy.base / "out" / "report.html").read_text()

    run = runs.Run(copy.name, OURS, "nnUNetPlans", TINY, 0, 0)
    predictions = copy.base / "out" / "predictions" / run.name
    images = images_by_case(tmp_path / "images", ".nii.gz")
    assert launch.is_predicted(run, images, predictions)
    assert not launch.is_predicted(replace(run, seed=1), images, predictions)
    os.utime(run.folder / runs.FINAL)  # as after another training
    assert not launch.is_predicted(run, images, predictions)
    first, *_ = sorted((tmp_path / "labels").glob("[!.]*"))
    first.unlink()
    message = failure(copy, "--test", tmp_path / "images", tmp_path / "labels")
    case = first.name.partition(".")[0]
    assert f"Case {case} of {tmp_path / 'images'}: no such file in {tmp_path / 'labels'}" in message


def test_postprocessed_predictions_are_compared(copy):
    for case in copy.split["val"]:  # two islands beside a perfect segmentation
        prediction = fold_of(copy, OURS) / "validation" / f"{case}.nii.gz"
        shutil.copy(copy.preprocessed / "gt_segmentations" / prediction.name, prediction)
        add_island(prediction)
    commands.compare(arguments(copy.base / "out", "--postprocessing"))
    scores = read_csv(copy.base / "out" / "scores.csv")
    names = {name: str(v) for name, v in copy.dataset_json()["labels"].items()}
    for trainer in (STOCK, OURS):
        run = runs.Run(copy.name, trainer, "nnUNetPlans", TINY, 0, 0)
        folder = copy.base / "out" / "postprocessing" / run.name / "validation"
        of_nnunet = json.loads((folder / "postprocessing.json").read_text())["postprocessed"]
        for name in {row["class"] for row in scores}:
            values = [
                float(row["value"]) for row in scores
                if (row["trainer"], row["class"], row["metric"]) == (trainer, name, "DSC")
            ]  # fmt: skip
            assert np.mean(values) == pytest.approx(of_nnunet["mean"][names[name]]["Dice"])
    ours = [row["value"] for row in scores if (row["trainer"], row["metric"]) == (OURS, "DSC")]
    assert {float(value) for value in ours} == {1.0}
    assert "postprocessing" in (copy.base / "out" / "report.html").read_text()


def test_images_without_label_beside_nnunets_own_folds(copy, here, capsys):
    """The way of a clinician: labelled cases in imagesTr, the others in imagesUn, no split."""
    raw = copy.base / "nnUNet_raw" / copy.name
    shutil.rmtree(copy.results)
    (copy.preprocessed / "splits_final.json").unlink()
    (raw / "imagesUn").mkdir()
    for number, case in enumerate(copy.split["unlabelled"][:2]):
        image = sitk.ReadImage(raw / "imagesTr" / f"{case}_0000.nii.gz")
        other = sitk.Flip(image, (True, False, False))  # no copy of a labelled one
        sitk.WriteImage(other, raw / "imagesUn" / f"other{number}_0000.nii.gz")
    commands.preprocess(["-d", "901", "-c", TINY, "-np", "1"])
    commands.compare(arguments(copy.base / "out", "--run", "-device", "cpu"))
    fold = json.loads((copy.preprocessed / "splits_final.json").read_text())[0]
    html = (copy.base / "out" / "report.html").read_text()
    assert f"{len(fold['train'])} labelled, 2 unlabelled" in html
    assert {row["case"] for row in read_csv(copy.base / "out" / "scores.csv")} == set(fold["val"])
    # the stock trainer started by hand notes no cases, and nnU-Net wrote the split after its log
    (fold_of(copy, STOCK) / runs.RECORD).unlink()
    capsys.readouterr()
    commands.compare(arguments(copy.base / "again"))
    assert "| PLGCL_tiny |" in capsys.readouterr().out
    for file in (raw / "imagesTr").iterdir():  # preprocessed data alone went to a cluster
        file.unlink()
    commands.compare(arguments(copy.base / "third"))
    assert re.search("note .*not drawn: the raw images are not at hand", capsys.readouterr().out)
    assert "Segmentations" not in (copy.base / "third" / "report.html").read_text()


def test_fold_all_on_test_cases(copy, here, tmp_path):
    raw, everything = (
        copy.base / "nnUNet_raw" / copy.name,
        sorted(c for part in copy.split.values() for c in part),
    )
    (raw / "imagesUn").mkdir()
    folder_un = copy.preprocessed / f"nnUNetPlans_{TINY}_unlabelled"
    shutil.copytree(copy.case_folder, folder_un, ignore=shutil.ignore_patterns("*_seg.b2nd"))
    for file in list(folder_un.iterdir()):
        file.rename(file.with_name(f"un_{file.name}"))
    unlabelled = preprocessed_cases(copy.preprocessed / f"nnUNetPlans_{TINY}_unlabelled")
    for trainer in (STOCK, OURS):  # as if trained on all
        of_all = fold_of(copy, trainer).with_name("fold_all")
        fold_of(copy, trainer).rename(of_all)
        for case in everything:
            (of_all / "validation" / f"{case}.nii.gz").touch()
        change_json(of_all / runs.RECORD, labelled_cases=everything)
    cases = {"labelled": everything, "validation": everything, "unlabelled": unlabelled}
    change_json(of_all / TRAINING, cases=cases)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for case in copy.split["val"]:
        shutil.copy(raw / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "images")
        shutil.copy(raw / "labelsTr" / f"{case}.nii.gz", tmp_path / "labels")
    commands.compare(
        arguments(copy.base / "out", "-f", "all", "-device", "cpu",
                  "--test", tmp_path / "images", tmp_path / "labels")
    )  # fmt: skip
    assert len(here) == 2
    rows = read_csv(copy.base / "out" / "scores.csv")
    assert {row["case"] for row in rows} == set(copy.split["val"])
    assert {(row["fold"], row["labelled"]) for row in rows} == {("all", "12")}
