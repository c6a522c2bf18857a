import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from training import EXT_TRAINERS

from nnunetv2_plgcl import commands, demo
from nnunetv2_plgcl.datasets.phantom import phantom_volume
from nnunetv2_plgcl.workers import LOG_TAIL, run_logged


@pytest.mark.takes_minutes
def test_whole_way_with_few_iterations(tmp_path, monkeypatch, capsys):
    """All commands for real; only the trainings are shorter, and fewer patients unlabelled."""
    monkeypatch.setattr(demo, "PATIENTS", 9)
    for name in demo.NNUNET_FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / "of_the_user"))
    # the planner and wandb must be told otherwise than the user's shell tells them
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setenv("nnUNet_extTrainer", str(EXT_TRAINERS))
    trainers = {
        "mean teacher": "nnUNetTrainerMeanTeacher_tiny",
        "PLGCL": "nnUNetTrainerPLGCL_tiny",
    }
    output = tmp_path / "demo"
    demo.run_demo(output, trainers=trainers, seed=1)
    printed = capsys.readouterr()

    assert not (tmp_path / "of_the_user").exists()
    raw = output / "nnUNet_raw" / demo.DATASET
    report = output / "comparison" / "report.html"
    assert printed.out.rstrip().endswith(str(report))
    for heading in ("Cases", "Learning", "Segmentations"):
        assert f">{heading}</h2>" in report.read_text()
    image = phantom_volume(1, demo.PATIENTS + 1, False)[0]
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(raw / "imagesTs" / "patient010_frame01_0000.nii.gz")),
        image,
    )
    (fold,) = json.loads(
        (output / "nnUNet_preprocessed" / demo.DATASET / "splits_final.json").read_text()
    )
    frames = {"train": 2 * demo.LABELLED, "val": 2 * demo.VALIDATION}
    assert {part: len(fold[part]) for part in frames} == frames
    scores = pd.read_csv(output / "comparison" / "scores.csv").query("metric == 'DSC'")
    assert set(scores["case"].str[:10]) == {f"patient{n:03d}" for n in range(10, 15)}
    (mean,) = (line for line in printed.out.splitlines() if line.startswith("mean  "))
    shown = dict(zip(trainers.values(), mean.split()[1:], strict=True))
    for trainer in trainers.values():
        of_trainer = scores[scores["trainer"] == trainer]["value"]
        assert float(shown[trainer]) == pytest.approx(of_trainer.mean(), abs=5e-4)
        assert f"nnUNetv2_train 1 {demo.CONFIGURATION} 0 -tr {trainer}" in printed.out
        assert "Epoch 3" in (output / "logs" / f"train_{trainer}.txt").read_text()
    for name in demo.NNUNET_FOLDERS:
        assert f"export {name}={output / name}" in printed.out
    assert "demo" not in printed.err, "no progress bars where nobody watches"


def test_both_methods_get_the_same_number_of_epochs():
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

    from nnunetv2_plgcl.trainers import trainer_classes

    assert hasattr(nnUNetTrainer_Xepochs, demo.TRAINERS["nnU-Net"])
    assert demo.TRAINERS["PLGCL"] in trainer_classes()
    assert {name.split("_")[1] for name in demo.TRAINERS.values()} == {"10epochs"}


def test_folder_of_others_is_refused_and_left_alone(tmp_path):
    mine = tmp_path / "nnUNet_raw" / "Dataset005_Prostate"
    mine.mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds other files"):
            demo.prepare_output(tmp_path, overwrite)
    assert mine.is_dir() and [p.name for p in tmp_path.iterdir()] == ["nnUNet_raw"]


def test_earlier_demo_is_replaced_on_demand_but_not_what_lies_beside_it(tmp_path):
    demo.prepare_output(tmp_path, overwrite=False)
    old = tmp_path / "logs" / "old.txt"
    old.write_text("old")
    note = tmp_path / "note.txt"
    note.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite replaces it"):
        demo.prepare_output(tmp_path, overwrite=False)
    assert old.exists()
    demo.prepare_output(tmp_path, overwrite=True)
    assert not old.exists() and note.exists()


def test_command_stops_with_one_line_on_a_used_folder(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        commands.demo(["--output", str(tmp_path)])
    assert "holds other files" in str(stopped.value.code) and "\n" not in str(stopped.value.code)


def test_failing_command_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(RuntimeError, match="ended with status 2") as failed:
        run_logged([demo.console_script("nnUNetv2_plgcl_split")], os.environ, log)
    assert "the following arguments are required" in str(failed.value)
    assert "the following arguments are required" in log.read_text()
    assert len(str(failed.value).splitlines()) < LOG_TAIL + 5


def test_missing_command_is_named():
    with pytest.raises(RuntimeError, match="There is no nnUNetv2_nothing in"):
        demo.console_script("nnUNetv2_nothing")


def test_training_environment_is_the_callers_but_for_nnunet(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("nnUNet_raw", "/of/the/user")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    train = demo.command_environment(Path("/demo"), "nnUNetv2_train")
    plan = demo.command_environment(Path("/demo"), "nnUNetv2_plan_and_preprocess")
    assert train["HOME"] == plan["HOME"] == "/somewhere"
    assert train["nnUNet_raw"] == plan["nnUNet_raw"] == "/demo/nnUNet_raw"
    assert train["nnUNet_n_proc_DA"] == "0" and "nnUNet_n_proc_DA" not in plan
    assert train["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.getenv("nnUNet_raw") == "/of/the/user"


def test_table_has_every_class_and_method():
    dice = {
        "first": {"RV": (0.1, 0.3), "myocardium": (0.2, 0.4), "LV": (0.4, 0.4)},
        "second": {"RV": (0.5, 0.7), "myocardium": (0.6, 0.8), "LV": (0.9, 1.0)},
    }
    scores = pd.DataFrame(
        (trainer, case, of_class, "DSC", value)
        for trainer, classes in dice.items()
        for of_class, values in classes.items()
        for case, value in enumerate(values)
    ).set_axis(["trainer", "case", "class", "metric", "value"], axis=1)
    others = scores.assign(metric="HD95", value=7.0)
    table = demo.dice_table(pd.concat([scores, others]), {"B": "second", "A": "first"})
    assert [line.split() for line in table.splitlines()] == [
        ["DSC,", "2", "test", "volumes", "B", "A"],
        ["RV", "0.600", "0.200"],
        ["myocardium", "0.700", "0.300"],
        ["LV", "0.950", "0.400"],
        ["mean", "0.750", "0.300"],
    ]


def test_terminal_gets_a_progress_bar():
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    code = (
        "from pathlib import Path; from nnunetv2_plgcl.demo import Demo\n"
        "demo = Demo(Path('x'), total=1)\n"
        "with demo.stage('first'): pass\n"
    )
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows, columns
    subprocess.run([sys.executable, "-c", code], stdout=slave, stderr=slave, check=True)
    os.close(slave)
    with os.fdopen(master, "rb") as terminal:
        shown = os.read(terminal.fileno(), 10000).decode()
    assert "first" in shown and "1/1" in shown
