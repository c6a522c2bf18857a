"""The scripts that train: what they pass on, and one of them from a download to its table."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from training import EXT_TRAINERS

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bash(script: str, *arguments: object, **variables: object) -> subprocess.CompletedProcess:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("nnUNet")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{name: str(value) for name, value in variables.items()},
    }
    command = ["bash", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_papers_rows_stand_under_the_nearest_share():
    script = load("beside_paper")
    paper = pd.read_csv(script.PAPER)
    kits = paper[paper["dataset"] == "kits19"]
    ours = pd.DataFrame({"share": [4 / 147, 15 / 147, 0.05], "trainer": ["A", "A", "A"], "DSC":
                         [0.8764, 0.9, 0.5], "HD95": [5.0, 4, 3], "ASD": [1.0, 2, 3]})  # fmt: skip
    lines = script.beside(ours, kits).values.tolist()
    assert lines.pop(3) == ["5 %", "A", "ours", "0.500", "3.00", "3.00"]  # the paper has no 5 %
    assert lines[0] == ["2.5 %", "A", "ours", "0.876", "5.00", "1.00"]
    assert lines[1] == ["2.5 %", "PLGCL", "paper", "0.905", "6.75", "1.75"]
    assert [line[1] for line in lines[3:]] == ["A", "PLGCL", "GBDL (best rival)", "supervised"]


@pytest.mark.parametrize("dataset", ["acdc", "kits19", "crag"])
def test_reproduction_says_what_it_needs(dataset, tmp_path):
    done = bash(f"reproduce_{dataset}.sh")
    assert done.returncode == 2
    assert done.stderr == f"Usage: bash scripts/reproduce_{dataset}.sh DOWNLOAD\n"
    done = bash(f"reproduce_{dataset}.sh", tmp_path)
    assert done.returncode == 2 and "Set nnUNet_raw" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_first(tmp_path):
    folders = {f"nnUNet_{f}": tmp_path for f in ("raw", "preprocessed", "results")}
    done = bash("reproduce_acdc.sh", tmp_path, **folders, OUTPUT=tmp_path / "out")
    assert done.returncode == 1 and "finds no cuda device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_with_another_split_is_not_taken_for_the_papers(prepared):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "require.py", "protocol", "acdc", "901"],
        env={**os.environ, **prepared.environment()}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Dataset901_Heart is there, but its split is not the one of" in done.stderr


def small(source: Path, target: Path) -> None:
    """A volume at a sixth of its resolution, so that nnU-Net plans something small."""
    image = sitk.ReadImage(str(source))
    image = sitk.Shrink(image, [6, 6, 1])[:, :, :4]
    sitk.WriteImage(image, str(target))


@pytest.mark.takes_minutes
def test_acdc_from_a_download_to_the_papers_table(acdc, tmp_path):
    cases = sorted(f.name.removesuffix(".nii.gz") for f in (acdc / "labelsTr").iterdir())
    known = sorted({case.partition("_")[0] for case in cases})
    for number in range(1, 101):
        patient = f"patient{number:03d}"
        folder = tmp_path / "download" / "database" / "training" / patient
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 2\nGroup: DCM\nNbFrame: 2\n")
        # the 20 test patients are not among the shared ones: others stand in
        source = patient if patient in known else known[number % len(known)]
        for frame in (1, 2):
            name = f"{source}_frame{frame:02d}"
            stem = folder / f"{patient}_frame{frame:02d}"
            small(acdc / "imagesTr" / f"{name}_0000.nii.gz", stem.with_suffix(".nii.gz"))
            small(acdc / "labelsTr" / f"{name}.nii.gz", Path(f"{stem}_gt.nii.gz"))
    folders = {f"nnUNet_{f}": tmp_path / f for f in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        folder.mkdir()
    done = bash(
        "reproduce_acdc.sh", tmp_path / "download", **folders,
        DEVICE="cpu", SEEDS=1, FOLDS=0, OUTPUT=tmp_path / "out", nnUNet_extTrainer=EXT_TRAINERS,
        TRAINERS="nnUNetTrainerMeanTeacher_tiny", nnUNet_n_proc_DA=0,
        nnUNet_def_n_proc=1, OMP_WAIT_POLICY="PASSIVE",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = (tmp_path / "out" / "beside_paper.md").read_text()
    assert "| 10 % | nnUNetTrainerMeanTeacher_tiny | ours |" in table
    assert "| 20 % | PLGCL | paper | 0.912 | 3.82 | 1.49 |" in table
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores["case"].nunique() == 40 and set(scores["labelled"]) == {14}
