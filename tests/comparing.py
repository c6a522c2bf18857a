"""Tiny trainings of nnU-Net's trainer and ours, and their comparison from the command line."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import TINY, Prepared
from training import EXT_TRAINERS, command_environment, nnunet_command

from nnunetv2_plgcl import commands

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


@pytest.fixture(scope="session")
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


@pytest.fixture
def here(copy, monkeypatch):
    """Jobs run in this process; the list gets the name of each that does."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    from nnunetv2_plgcl.evaluation import launch

    done: list[str] = []

    def execute(jobs, logs, at_once):
        for job in jobs:
            done.append(job.run.name)
            launch.execute(job)

    monkeypatch.setattr(launch, "launch_local", execute)
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr(nnUNetTrainer, "default_num_processes", 1)  # each takes seconds to start
    return done
