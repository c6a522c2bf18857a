"""Real (tiny) trainings of nnU-Net's trainer and ours, compared from the command line."""

import csv
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import TINY, Prepared, add_island
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer
from training import EXT_TRAINERS, command_environment, nnunet_command

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets.raw import images_by_case
from nnunetv2_plgcl.datasets.unlabelled import preprocessed_cases
from nnunetv2_plgcl.evaluation import launch, refuse, runs
from nnunetv2_plgcl.evaluation.folds import Fold
from nnunetv2_plgcl.record import FILE as TRAINING

STOCK, OURS = "nnUNetTrainer_tiny", "nnUNetTrainerPLGCL_tiny"


def arguments(output: Path, *more: object) -> list[str]:
    words = ("-d", 901, "-c", TINY, "-f", 0, "-tr", STOCK, OURS, "-o", output, "-np", 1, *more)
    return [str(word) for word in words]


def run(prepared: Prepared, *words: object) -> str:
    done = subprocess.run(
        nnunet_command(*words), env=command_environment(prepared), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(prepared_once, tmp_path_factory) -> Prepared:
    """Both trainers twice, by --run; the comparison lies in ``base / "compared"``."""
    base = tmp_path_factory.mktemp("compared")
    mine = Prepared(base, prepared_once.name, prepared_once.split)
    shutil.copytree(prepared_once.base, base, dirs_exist_ok=True)
    command = arguments(base / "compared", "--run", "--seeds", 2, "-device", "cpu")
    printed = run(mine, "nnUNetv2_plgcl_compare", *command)
    (base / "printed.txt").write_text(printed)
    return mine


@pytest.fixture
def copy(trained, tmp_path, monkeypatch, in_this_process) -> Prepared:
    """A private copy of the trained models, compared in this process."""
    mine = Prepared(tmp_path / "copy", trained.name, trained.split)
    shutil.copytree(trained.base, mine.base)
    for name, value in mine.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_extTrainer", str(EXT_TRAINERS))
    return mine


def fold_of(prepared: Prepared, trainer: str, seed: int = 0) -> Path:
    plans = "nnUNetPlans" + (f"_seed{seed}" if seed else "")
    return prepared.results / f"{trainer}__{plans}__{TINY}" / "fold_0"


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file) as stream:
        return list(csv.DictReader(stream))


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def failure(prepared: Prepared, *more: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        commands.compare(arguments(prepared.base / "out", *more))
    message = str(stopped.value.code)
    assert message.startswith("nnUNetv2_plgcl_compare: ") and "\n" not in message
    return message


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


def test_predictions_of_test_images_are_compared(copy, tmp_path, capsys):
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
    assert first.name.partition(".")[0] in message and "only" in message


def test_postprocessed_predictions_are_compared(copy, nnunet_in_threads):
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


def test_unlike_runs_are_refused_by_name(copy):
    ours = fold_of(copy, OURS)
    split = copy.preprocessed / "splits_final.json"
    original = split.read_text()
    (fold,) = json.loads(original)

    change_json(ours / "debug.json", num_epochs="5")
    message = failure(copy)
    assert "5 epochs" in message and "4 epochs" in message and OURS in message
    change_json(ours / "debug.json", num_epochs="4")

    plans = json.loads((ours.parent / "plans.json").read_text())
    plans["configurations"][TINY]["patch_size"] = [32, 32]
    (ours.parent / "plans.json").write_text(json.dumps(plans))
    assert re.search(r"different plans: patch_size", failure(copy))
    plans["configurations"][TINY]["patch_size"] = [48, 48]
    (ours.parent / "plans.json").write_text(json.dumps(plans))

    labelled, other = fold["train"][0], fold["unlabelled"][0]
    swapped = {**fold, "train": [other, *fold["train"][1:]]}
    split.write_text(json.dumps([swapped]))
    message = failure(copy)
    assert "other labelled cases" in message and labelled in message and other in message

    fewer = fold["unlabelled"][1:]
    split.write_text(json.dumps([{**fold, "unlabelled": fewer}]))
    message = failure(copy)
    assert "other unlabelled cases" in message and fold["unlabelled"][0] in message

    split.write_text(json.dumps([{**fold, "val": fold["val"][:1]}]))
    message = failure(copy)
    assert "other validation cases" in message and fold["val"][1] in message


def test_a_run_that_goes_on_keeps_what_was_noted_when_it_began(copy):
    """Else a split that was changed in between would be taken for the one of the training."""
    stock = fold_of(copy, STOCK)
    before = json.loads((stock / runs.RECORD).read_text())
    (stock / "validation" / "summary.json").unlink()
    file = copy.preprocessed / "splits_final.json"
    (fold,) = json.loads(file.read_text())
    swapped = {**fold, "train": fold["unlabelled"][:4], "unlabelled": fold["train"]}
    file.write_text(json.dumps([swapped]))
    message = failure(copy, "--run", "-device", "cpu")
    assert f"{STOCK} (fold 0, seed 0) has other labelled cases" in message
    assert json.loads((stock / runs.RECORD).read_text()) == before


def test_runs_that_note_no_cases_are_held_against_their_log_and_the_splits_date(copy):
    """As with nnU-Net's trainer started by hand; ours notes its cases in any case."""
    both = [runs.Run(copy.name, t, "nnUNetPlans", TINY, 0, 0) for t in (STOCK, OURS)]
    for one in both:
        (one.folder / runs.RECORD).unlink()
    file = copy.preprocessed / "splits_final.json"
    (fold,) = json.loads(file.read_text())

    def check(trust: bool = False, train: list[str] = fold["train"]) -> None:
        refuse.require_alike(both, {0: Fold(train, fold["val"], fold["unlabelled"])}, trust)

    os.utime(file, (0, 0))
    check()
    os.utime(file)
    with pytest.raises(ValueError, match="younger than the training of nnUNetTrainer_tiny"):
        check()
    check(trust=True)
    with pytest.raises(ValueError, match="had 4 labelled cases"):
        check(trust=True, train=fold["train"][1:])
    swapped = [fold["unlabelled"][0], *fold["train"][1:]]
    with pytest.raises(ValueError, match=r"PLGCL_tiny \(fold 0, seed 0\) has other labelled cases"):
        check(trust=True, train=swapped)


@pytest.fixture
def here(copy, monkeypatch):
    """Jobs run in this process; the list gets the name of each that does."""
    done: list[str] = []

    def execute(jobs, logs, at_once):
        for job in jobs:
            done.append(job.run.name)
            launch.execute(job)

    monkeypatch.setattr(launch, "launch_local", execute)
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr(nnUNetTrainer, "default_num_processes", 1)  # each takes seconds to start
    return done


def test_what_cannot_be_compared_is_refused_before_the_first_training(copy, here, tmp_path):
    """The baseline would be trained to its end first; what stops the others is known by then."""
    raw, split = copy.base / "nnUNet_raw" / copy.name, copy.preprocessed / "splits_final.json"
    shutil.rmtree(copy.results)
    run_both = ("--run", "-device", "cpu")
    longer = failure(copy, *run_both, "-tr", STOCK, OURS, "nnUNetTrainer_5epochs")
    assert "5 epochs x 250 iterations" in longer and "4 epochs x 3 iterations" in longer
    assert "nnUNetTrainerNothing" in failure(copy, *run_both, "-tr", STOCK,
                                                        "nnUNetTrainerNothing")  # fmt: skip
    plans_file = copy.preprocessed / "nnUNetPlans.json"
    plans = plans_file.read_text()
    changed = json.loads(plans)
    changed["configurations"][TINY]["plgcl"] = {"ema_decay": 2}
    plans_file.write_text(json.dumps(changed))
    assert f"{OURS} does not start: 'ema_decay'" in failure(copy, *run_both)
    changed["configurations"][TINY].update(plgcl={}, batch_size=1)
    plans_file.write_text(json.dumps(changed))
    assert "The batch size of configuration 2d_tiny is 1" in failure(copy, *run_both)
    plans_file.write_text(plans)

    original = split.read_text()
    (fold,) = json.loads(original)
    split.write_text(json.dumps([{"train": fold["train"], "val": fold["val"]}]))
    assert "names no unlabelled case" in failure(copy, *run_both)
    split.write_text(original)

    reference = copy.preprocessed / "gt_segmentations" / f"{fold['val'][0]}.nii.gz"
    kept = reference.read_bytes()
    image = sitk.ReadImage(reference)
    sitk.WriteImage(image[1:], reference)
    assert f"{reference} has shape" in failure(copy, *run_both)
    sitk.WriteImage(image * 7, reference)
    assert "value 7 in the label" in failure(copy, *run_both)
    reference.unlink()
    assert f"{fold['val'][0]} without a reference" in failure(copy, *run_both)
    reference.write_bytes(kept)

    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    shutil.copy(reference, tmp_path / "labels")
    for channel in (0, 1):
        shutil.copy(raw / "imagesTr" / f"{fold['val'][0]}_0000.nii.gz",
                    tmp_path / "images" / f"{fold['val'][0]}_{channel:04d}.nii.gz")  # fmt: skip
    test = ("--test", tmp_path / "images", tmp_path / "labels")
    assert "has 2 channels, dataset.json names 1" in failure(copy, *run_both, *test)
    assert "add --test" in failure(copy, "-f", "all", *run_both)
    assert here == [] and not list(copy.results.rglob("*.pth"))


def test_a_finished_run_that_does_not_fit_is_refused_before_the_others_are_trained(copy, here):
    shutil.rmtree(fold_of(copy, OURS))
    change_json(fold_of(copy, STOCK) / "debug.json", num_epochs="5")
    message = failure(copy, "--run", "-device", "cpu")
    assert "5 epochs" in message and "4 epochs" in message
    change_json(fold_of(copy, STOCK) / "debug.json", num_epochs="4")
    plans_file = copy.preprocessed / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"][TINY]["patch_size"] = [32, 32]
    plans_file.write_text(json.dumps(plans))
    assert "different plans: patch_size" in failure(copy, "--run", "-device", "cpu")
    assert here == []


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


def test_what_is_missing_is_said_before_anything_is_done(copy):
    shutil.rmtree(fold_of(copy, OURS) / "validation")
    message = failure(copy)
    assert f"{OURS} (fold 0, seed 0) is not finished" in message
    assert f"nnUNetv2_train {copy.name} {TINY} 0 -tr {OURS} -p nnUNetPlans --c" in message
    assert "has no fold 3" in failure(copy, "-f", "3")
    assert "nnUNetTrainerNothing" in failure(copy, "-tr", "nnUNetTrainerNothing", "--run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_in_one_line(copy):
    shutil.rmtree(fold_of(copy, OURS))
    assert "no cuda device" in failure(copy, "--run")
