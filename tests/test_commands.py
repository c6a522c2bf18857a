"""What all console commands have in common."""

import argparse
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.commands.arguments import add_processes
from nnunetv2_plgcl.commands.errors import errors_in_one_line
from nnunetv2_plgcl.evaluation import evaluate

PREFIX = "nnUNetv2_plgcl_"


def test_every_command_is_installed_under_its_name():
    installed = {
        entry.name: entry.load()
        for entry in entry_points(group="console_scripts")
        if entry.name.startswith(PREFIX)
    }
    assert installed == {f"{PREFIX}{name}": getattr(commands, name) for name in commands.__all__}


def test_help_comes_without_torch_and_matplotlib():
    script = """
import sys
from nnunetv2_plgcl import commands
for name in commands.__all__:
    try:
        getattr(commands, name)(["--help"])
    except SystemExit as end:
        assert end.code == 0
print("LOADED", sorted({"torch", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("LOADED []\n"), done.stderr
    assert done.stdout.count("usage: ") == len(commands.__all__)


@pytest.mark.parametrize(("of_nnunet", "ours"), [("1", 1), ("16", 4), ("0", 4), ("many", 4)])
def test_no_more_workers_than_nnunet_is_to_have(monkeypatch, of_nnunet, ours):
    monkeypatch.setenv("nnUNet_def_n_proc", of_nnunet)
    parser = argparse.ArgumentParser()
    add_processes(parser)
    assert parser.parse_args([]).np == ours
    assert parser.parse_args(["-np", "6"]).np == 6


def test_unexpected_error_is_one_line_that_names_the_traceback(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError("shape\nof things")

    monkeypatch.setattr(evaluate, "evaluate_folder", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "dataset.json").write_text('{"file_ending": ".png", "labels": {"background": 0}}')
    with pytest.raises(SystemExit) as stopped:
        commands.evaluate([str(tmp_path), str(tmp_path), "-djfile", str(tmp_path / "dataset.json")])
    line = str(stopped.value.code)
    assert line.startswith("nnUNetv2_plgcl_evaluate: ") and "\n" not in line
    traceback = Path(line.split()[-1]).read_text()
    assert 'raise KeyError("shape\\nof things")' in traceback and "in broken" in traceback


def test_refusal_is_its_own_words_and_interruption_has_none():
    with pytest.raises(SystemExit) as refused, errors_in_one_line("name"):
        raise FileNotFoundError("There is no folder x.")
    assert refused.value.code == "name: There is no folder x."
    with pytest.raises(SystemExit) as refused, errors_in_one_line("name"):
        Path("/nowhere/x").read_text()
    assert refused.value.code == "name: There is no /nowhere/x."
    with pytest.raises(SystemExit) as refused, errors_in_one_line("name"):
        Path(__file__, "folder").mkdir(parents=True)
    assert refused.value.code == f"name: {__file__}/folder lies in what is a file, not a folder."
    with pytest.raises(SystemExit) as interrupted, errors_in_one_line("name"):
        raise KeyboardInterrupt
    assert interrupted.value.code == 130
