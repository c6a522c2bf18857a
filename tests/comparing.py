"""Tiny trainings of nnU-Net's trainer and ours, and their comparison from the command line."""

import csv
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from conftest import TINY, Prepared, without_workers
from training import EXT_TRAINERS, command_environment

from nnunetv2_plgcl import commands

STOCK, OURS = "nnUNetTrainer_tiny", "nnUNetTrainerPLGCL_tiny"


def arguments(output: Path, *more: object) -> list[str]:
    words = ("-d", 901, "-c", TINY, "-f", 0, "-tr", STOCK, OURS, "-o", output, "-np", 1, *more)
    return [str(word) for word in words]


@pytest.fixture(scope="session")
def trained(prepared_once, tmp_path_factory) -> Prepared:
    """Both trainers twice, by --run; the comparison lies in ``base / "compared"``."""
    base = tmp_path_factory.mktemp("compared")
    mine = Prepared(base, prepared_once.name, prepared_once.split)
    shutil.copytree(prepared_once.base, base, dirs_exist_ok=True)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        for name, value in command_environment(mine).items():
            patch.setenv(name, value)
        without_workers(patch)
        jobs_in_this_process(patch)
        commands.compare(arguments(base / "compared", "--run", "--seeds", 2, "-device", "cpu"))
    (base / "printed.txt").write_text(printed.getvalue())
    return mine


def jobs_in_this_process(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of runs, as they are trained or predict, without the processes they would take."""
    from nnunetv2_plgcl.evaluation import launch

    done: list[str] = []

    def execute(jobs, logs, at_once):
        for job in jobs:
            done.append(job.run.name)
            launch.execute(job)

    patch.setattr(launch, "launch_local", execute)
    patch.setattr("sys.argv", [])
    return done


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
def here(copy, monkeypatch) -> list[str]:
    """Jobs run in this process; the list gets the name of each that does."""
    return jobs_in_this_process(monkeypatch)
