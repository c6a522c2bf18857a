"""The scripts that train: what they pass on, and one of them from a download to its table."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import (
    get_pool_and_conv_props,
)
from training import EXT_TRAINERS, make_trainer

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


def test_benchmark_folds_are_those_of_the_literature(acdc):
    published = json.loads((acdc / "split.json").read_text())
    cases = [file.name.removesuffix(".nii.gz") for file in (acdc / "labelsTr").iterdir()]
    folds = load("prepare_acdc_benchmark").splits(cases)
    for fold, number in zip(folds, ("7", "14", "3"), strict=False):
        assert fold["train"] == sorted(published["labelled"][number])
        assert sorted(fold["train"] + fold["unlabelled"]) == sorted(published["train"])
    assert folds[3].keys() == {"train", "val"} and folds[3]["train"] == sorted(published["train"])
    (validation,) = {tuple(fold["val"]) for fold in folds}
    assert not {*validation} & {*published["train"]} and len(validation) == 20


def test_half_resolution_configuration_is_what_nnunet_would_plan_for_such_images():
    def planned(patch_size: list[int]) -> dict:
        _, strides, kernel_sizes, *_ = get_pool_and_conv_props([1, 1], patch_size, 4, 999)
        stages = len(strides)
        arguments = {
            "n_stages": stages,
            "strides": [list(stride) for stride in strides],
            "kernel_sizes": [list(size) for size in kernel_sizes],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "features_per_stage": [min(32 * 2**stage, 512) for stage in range(stages)],
        }
        return {"architecture": {"arch_kwargs": arguments}}

    half = load("prepare_acdc_benchmark").cpu_configuration("2d_half", planned([256, 224]))
    assert half["patch_size"] == [128, 112]
    expected = planned([128, 112])["architecture"]["arch_kwargs"]
    expected["features_per_stage"] = [number // 2 for number in expected["features_per_stage"]]
    assert half["architecture"]["arch_kwargs"] == expected


def test_benchmark_refuses_other_patients(acdc):
    cases = [file.name.removesuffix(".nii.gz") for file in (acdc / "labelsTr").iterdir()]
    splits = load("prepare_acdc_benchmark").splits
    with pytest.raises(ValueError, match="there are 71 for training. ACDC's own test patients"):
        splits([*cases, "patient101_frame01"])
    validation = json.loads((acdc / "split.json").read_text())["val"][0].partition("_")[0]
    with pytest.raises(ValueError, match=f"no {validation}"):
        splits([case for case in cases if not case.startswith(validation)])


def test_rows_of_other_trainers_and_seeds_stay_when_results_are_collected(tmp_path, monkeypatch):
    def compared(trainer, seeds, score, name="100_7__P__2d_small"):
        folder = tmp_path / name
        monkeypatch.setattr("sys.argv", ["", str(folder)])
        folder.mkdir(exist_ok=True)
        models = [f"{trainer}__P{f'_seed{n}' if n else ''}__2d_small" for n in range(seeds)]
        for seed, model in enumerate(models):
            run = tmp_path / "results_100" / "Dataset027_ACDC" / model / "fold_0"
            run.mkdir(parents=True, exist_ok=True)
            (run / "debug.json").write_text(json.dumps({"device": "cpu", "commit": f"c{seed}"}))
        scores = [{"trainer": trainer, "fold": 0, "seed": seed} for seed in range(seeds)]
        pd.DataFrame(scores).to_csv(folder / "scores.csv")
        pd.DataFrame([{"trainer": trainer, "DSC": score}]).to_csv(folder / "table.csv", index=False)
        load("collect_benchmark").main()
        found = pd.read_csv(tmp_path / "results.csv")
        return found[["trainer", "seeds", "DSC", "commit"]].values.tolist()

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results_100"))
    assert compared("A_benchmark", 2, 0.5) == [["A", 2, 0.5, "c0 c1"]]
    assert compared("A_benchmark", 1, 0.6) == [["A", 2, 0.5, "c0 c1"], ["A", 1, 0.6, "c0"]]
    assert compared("B_benchmark", 1, 0.7)[2] == ["B", 1, 0.7, "c0"]
    rows = compared("A_benchmark", 2, 0.8)
    assert sorted(rows)[1] == ["A", 2, 0.8, "c0 c1"] and len(rows) == 3
    rows = compared("A_benchmark", 2, 0.9, "100_7__P__2d_small__postprocessed")
    assert sorted(rows)[1:3] == [["A", 2, 0.8, "c0 c1"], ["A", 2, 0.9, "c0 c1"]]
    collected = pd.read_csv(tmp_path / "results.csv")
    assert collected["postprocessed"].tolist().count(True) == 1
    older = collected[~collected["postprocessed"]].drop(columns="postprocessed")
    older.to_csv(tmp_path / "results.csv", index=False)
    assert len(compared("A_benchmark", 2, 0.7)) == len(older)


def test_benchmark_trainers_differ_in_length_and_precision_alone(monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

    monkeypatch.setenv("nnUNet_extTrainer", str(SCRIPTS / "benchmark_trainers"))
    monkeypatch.setenv("PLGCL_BENCHMARK_ITERATIONS", "300")
    nothing = {"__module__", "__doc__", "__firstlineno__", "__static_attributes__"}
    for name in ("nnUNetTrainer", "nnUNetTrainerPLGCL", "nnUNetTrainerPLGCL_noWarmup"):
        found = find(f"{name}_benchmark")
        precision, trainer = found.__bases__
        assert trainer.__name__ == name
        assert set(vars(found)) <= {"__init__", *nothing}
        assert set(vars(precision)) <= {"_autocast", "_build_loss", "train_step", "optimise",
                                     *nothing}  # fmt: skip


@pytest.mark.parametrize("iterations", [100, 4000])
def test_the_learning_rate_of_a_benchmark_falls_near_zero(iterations, prepared, monkeypatch):
    monkeypatch.setenv("PLGCL_BENCHMARK_ITERATIONS", str(iterations))
    module = load("benchmark_trainers/benchmark_trainers")
    trainer = make_trainer(module.nnUNetTrainer_benchmark, prepared)
    trainer.initialize()
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == iterations
    rates = []
    for epoch in range(trainer.num_epochs):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.01  # nnU-Net's own
    assert rates[-1] == pytest.approx(0.01 * (1 / 50) ** 0.9)


@pytest.mark.parametrize("amx", [True, False])
def test_with_amx_benchmark_networks_run_in_bfloat16_and_losses_in_float32(amx, monkeypatch):
    monkeypatch.setenv("PLGCL_BENCHMARK_ITERATIONS", "300")
    module = load("benchmark_trainers/benchmark_trainers")
    monkeypatch.setattr(module, "HAS_AMX", amx)

    class Loss(torch.nn.Module):
        def forward(self, output, target):
            return (output[0] @ target).sum()  # autocast would cast a product of matrices

    seen = {}

    class Trainer(module.nnUNetTrainer):
        def __init__(self):
            self.device = torch.device("cpu")
            self.loss = self._build_loss()

        def _build_loss(self):
            return Loss()

        def train_step(self, batch):
            seen["logits"] = batch @ batch
            seen["loss"] = self.loss([seen["logits"]], batch)
            self.optimise(seen["loss"])

        def optimise(self, loss):
            seen["backward"] = batch @ batch

    batch = torch.rand(4, 4)
    type("Benchmark", (module._MixedPrecision, Trainer), {})().train_step(batch)
    assert seen["logits"].dtype == (torch.bfloat16 if amx else torch.float32)
    assert seen["loss"].dtype == seen["backward"].dtype == torch.float32
    assert seen["loss"] == (seen["logits"].float() @ batch).sum()


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


def test_what_is_packed_for_a_gpu_is_the_data_and_the_commit(prepared, tmp_path):
    head = ["git", "-C", str(SCRIPTS), "rev-parse", "--short", "HEAD"]
    committed = subprocess.run(head, capture_output=True, text=True)
    if committed.returncode != 0:
        pytest.skip("not a checkout of git")
    source, packed = prepared.base / "nnUNet_raw" / prepared.name, tmp_path / "packed"
    done = bash("benchmark_acdc_gpu.sh", "pack", source, packed)
    assert done.returncode == 0, done.stderr
    packed_commit = packed / "checkout" / "scripts" / "commit.py"
    wanted = committed.stdout.strip()
    assert runpy.run_path(str(packed_commit))["commit"]() == wanted
    with tarfile.open(packed / "acdc.tar.xz") as archive:
        archive.extractall(tmp_path / "images", filter="data")
    for folder in ("imagesTr", "labelsTr"):
        there = sorted((source / folder).iterdir())
        copies = sorted((tmp_path / "images" / folder).iterdir())
        assert [file.stem for file in there] == [file.name for file in copies]
        for file, copy in zip(there, copies, strict=True):
            one, other = (sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in (file, copy))
            assert (one == other).all()


def test_benchmark_says_what_it_needs(tmp_path):
    done = bash("benchmark_acdc_cpu.sh")
    assert done.returncode != 0 and "Name a folder" in done.stderr
    for iterations in (150, "many"):
        done = bash("benchmark_acdc_cpu.sh", "folder", ITERATIONS=iterations)
        assert done.returncode == 2 and "multiple of 100" in done.stderr
    done = bash("benchmark_acdc_cpu.sh", "folder", PATIENTS="7 5")
    assert done.returncode == 2 and "3, 7 and 14, but not 5" in done.stderr
    done = bash("benchmark_acdc_cpu.sh", "folder", SEEDS="two")
    assert done.returncode == 2 and "from 1 on, not two" in done.stderr
    done = bash("benchmark_acdc_cpu.sh", "folder", POSTPROCESSING="yes")
    assert done.returncode == 2 and "0 or 1, not yes" in done.stderr
    done = bash("benchmark_acdc_cpu.sh", tmp_path)
    assert done.returncode == 2 and "no folder imagesTr" in done.stderr
    (tmp_path / "imagesTr").mkdir()
    work = tmp_path / "work"
    done = bash("benchmark_acdc_cpu.sh", tmp_path, TRAINERS="nnUNetTrainerX", WORK=work)
    assert done.returncode == 1 and "nnUNetTrainerX_benchmark" in done.stderr
    done = bash("benchmark_acdc_cpu.sh", tmp_path, DEVICE="gpu", WORK=work)
    assert done.returncode == 1 and "no gpu device on this machine, only" in done.stderr
    assert not work.exists()
    settings = {"SETTINGS": '{"ema_decay": 0.99}', "WORK": work}
    done = bash("benchmark_acdc_cpu.sh", tmp_path, **settings)
    assert done.returncode == 1 and "name them, other than nnUNetPlans" in done.stderr
    settings |= {"SETTINGS": '{"ema_decy": 0.99}', "PLANS": "Fast"}
    done = bash("benchmark_acdc_cpu.sh", tmp_path, **settings)
    assert done.returncode == 1 and "Did you mean 'ema_decay'" in done.stderr
    for words in (("pack", tmp_path / "nothing", work), ("run", tmp_path)):
        done = bash("benchmark_acdc_gpu.sh", *words)
        assert done.returncode == 2 and str(words[1]) in done.stderr
    done = bash("benchmark_acdc_gpu.sh", "pack")
    assert done.returncode == 2 and "pack FOLDER PACKED" in done.stderr


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
        TRAINERS="nnUNetTrainer_tiny nnUNetTrainerPLGCL_tiny", nnUNet_n_proc_DA=0,
        nnUNet_def_n_proc=2, OMP_WAIT_POLICY="PASSIVE",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = (tmp_path / "out" / "beside_paper.md").read_text()
    assert "| 10 % | nnUNetTrainerPLGCL_tiny | ours |" in table
    assert "| 20 % | PLGCL | paper | 0.912 | 3.82 | 1.49 |" in table
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores["case"].nunique() == 40 and set(scores["labelled"]) == {14}
