"""``scripts/benchmark.py``: its splits, trainers and rows, and one benchmark from data to table."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from bare import bare_trainer
from conftest import SHARED_ACDC, write_raw_dataset
from nnunetv2.experiment_planning.experiment_planners.network_topology import (
    get_pool_and_conv_props,
)
from nnunetv2.run import run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
from training import make_trainer

from nnunetv2_plgcl import workers
from nnunetv2_plgcl.evaluation import launch

SCRIPTS = Path(__file__).parents[1] / "scripts"
TRAINERS = SCRIPTS / "bench" / "trainers"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def load(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def patients(cases: list[str]) -> set[str]:
    return {case.partition("_")[0] for case in cases}


def test_validation_folds_are_those_of_the_literature(acdc):
    from bench.prepare import make_folds

    published = json.loads((acdc / "split.json").read_text())
    folds = {
        (fold.split, fold.labelled): fold.cases for fold in make_folds(published, r"patient\d+")
    }
    for number in ("3", "7", "14"):
        fold = folds["val", number]
        assert fold["train"] == sorted(published["labelled"][number])
        assert sorted(fold["train"] + fold["unlabelled"]) == sorted(published["train"])
        assert fold["val"] == sorted(published["val"])
    everything = folds["val", "all"]
    assert everything == {"train": sorted(published["train"]), "val": sorted(published["val"])}


def test_development_folds_lie_inside_the_training_patients(acdc):
    from bench.datasets import DATASETS
    from bench.prepare import make_folds

    published = json.loads((acdc / "split.json").read_text())
    folds = make_folds(published, r"patient\d+", DATASETS["acdc"].copies)
    folds = [fold for fold in folds if fold.split == "dev"]
    assert [fold.labelled for fold in folds] == ["3", "7", "14", "all"]
    for fold in folds:
        parts = [patients(cases) for cases in fold.cases.values()]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 69, "no patient on two sides"
        assert set.union(*parts) == patients(published["train"]) - {"patient076"}
        assert len(patients(fold.cases["val"])) == 30
    seven = folds[1].cases
    assert len(patients(seven["train"])) == 7 and len(patients(seven["unlabelled"])) == 32
    assert {*folds[0].cases["train"]} < {*seven["train"]} < {*folds[2].cases["train"]}


@pytest.mark.parametrize("name", ["acdc", "hippocampus", "liver", "glas"])
def test_copies_are_the_patients_whose_images_another_has(name):
    from bench.datasets import DATASETS

    from nnunetv2_plgcl.datasets.groups import group_cases

    folder = SHARED_ACDC.with_name(name)
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}")
    train = json.loads((folder / "split.json").read_text())["train"]
    seen, copies = set(), set()
    for patient, cases in sorted(group_cases(train, DATASETS[name].patient).items()):
        pixels = set()
        for case in cases:
            (file,) = (folder / "imagesTr").glob(f"{case}_0000.*")
            image = sitk.GetArrayFromImage(sitk.ReadImage(file))
            pixels.add(hash(image.tobytes()))
        if pixels & seen:
            copies.add(patient)
        seen |= pixels
    assert copies == DATASETS[name].copies


def test_half_resolution_configuration_is_what_nnunet_would_plan_for_such_images():
    from bench.datasets import DATASETS

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

    whole = planned([256, 224])
    half = DATASETS["acdc"].cpu["2d_half"].made_from("2d_half", "2d", whole)
    assert half["patch_size"] == [128, 112] and whole == planned([256, 224])
    expected = planned([128, 112])["architecture"]["arch_kwargs"]
    expected["features_per_stage"] = [number // 2 for number in expected["features_per_stage"]]
    assert half["architecture"]["arch_kwargs"] == expected


def test_benchmark_trainers_differ_in_length_precision_and_timing_alone(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS), prepend=os.pathsep)
    nothing = {"__module__", "__doc__", "__firstlineno__", "__static_attributes__"}
    for name in ("nnUNetTrainer", "nnUNetTrainerPLGCL", "nnUNetTrainerPLGCL_noWarmup"):
        found = find(f"{name}_benchmark")
        timing, precision, trainer = found.__bases__
        assert trainer.__name__ == name
        assert set(vars(found)) <= {"__init__", *nothing}
        assert set(vars(timing)) <= {"on_train_epoch_start", "on_train_epoch_end", *nothing}
        assert set(vars(precision)) <= {"_autocast", "_build_loss", "train_step", "optimise",
                                     "_label_volumes", *nothing}  # fmt: skip
    with pytest.raises(RuntimeError, match="nnUNetTrainerX_benchmark"):
        find("nnUNetTrainerX_benchmark")


@pytest.mark.parametrize("iterations", [50, 4000])
def test_the_learning_rate_of_a_benchmark_falls_near_zero(iterations, prepared, monkeypatch):
    monkeypatch.setenv("PLGCL_BENCHMARK_ITERATIONS", str(iterations))
    module = load(TRAINERS / "benchmark_trainers.py")
    trainer = make_trainer(module.nnUNetTrainer_benchmark, prepared)
    trainer.initialize()
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == iterations
    rates = []
    for epoch in range(trainer.num_epochs):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.01  # nnU-Net's own
    assert rates[-1] == pytest.approx(0.01 * (1 / 50) ** 0.9)


@pytest.mark.parametrize("able", [True, False])
def test_where_a_cpu_can_benchmark_networks_run_in_bfloat16_and_losses_in_float32(
    able, monkeypatch
):
    module = load(TRAINERS / "benchmark_trainers.py")
    monkeypatch.setattr(module, "HAS_BFLOAT16", able)

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
    assert seen["logits"].dtype == (torch.bfloat16 if able else torch.float32)
    assert seen["loss"].dtype == seen["backward"].dtype == torch.float32
    assert seen["loss"] == (seen["logits"].float() @ batch).sum()


@pytest.fixture
def data(tmp_path) -> Path:
    """Two labelled, eight other training cases and two validation cases, at a sixth of their
    resolution."""
    folder = tmp_path / "data"
    cases = write_raw_dataset(folder)
    for file in [*folder.glob("imagesTr/*"), *folder.glob("labelsTr/*")]:
        small = sitk.Shrink(sitk.ReadImage(str(file)), [6, 6, 1])[:, :, :4]
        sitk.WriteImage(small, str(file))
    split = {"labelled": {"2": cases[:2]}, "train": cases[:10], "val": cases[10:]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def test_what_is_packed_is_the_data_and_the_commit(data, tmp_path):
    from bench.pack import pack, unpack

    head = ["git", "-C", str(SCRIPTS), "rev-parse", "--short", "HEAD"]
    committed = subprocess.run(head, capture_output=True, text=True)
    if committed.returncode != 0:
        pytest.skip("not a checkout of git")
    archive, checkout = pack(data, "acdc", tmp_path / "packed")
    commit = runpy.run_path(str(checkout / "scripts" / "commit.py"))["commit"]()
    assert commit == committed.stdout.strip()
    there = unpack(archive, tmp_path / "unpacked")
    assert (there / "split.json").read_bytes() == (data / "split.json").read_bytes()
    assert json.loads((there / "dataset.json").read_text())["file_ending"] == ".nii"
    for file in [*data.glob("imagesTr/*"), *data.glob("labelsTr/*")]:
        copy = there / file.parent.name / file.name.removesuffix(".gz")
        one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (file, copy))
        assert (one == other).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("acdc --labelled 7", "--data FOLDER is missing"),
        ("acdc --data . ", "--labelled N is missing"),
        ("acdc --data . --labelled 7 --iterations 120", "not a multiple of 50: 120"),
        ("acdc --data . --labelled 7 --seeds two", "not a number from 1 on: two"),
        ("acdc --data . --labelled 7 --first-seed -1", "not a number from 0 on: -1"),
        ("acdc --data . --labelled 7 --settings [1]", "names and values in JSON"),
        ("acdc --data . --labelled 7 --trainers A B A", "a trainer is named twice"),
        ("brain --data . --labelled 7", "invalid choice: 'brain'"),
    ],
)
def test_arguments_that_say_nothing_sensible(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load(SCRIPTS / "benchmark.py").read_arguments(arguments.split())
    assert message in capsys.readouterr().err


@pytest.fixture
def benchmark(monkeypatch):
    """Call the script in this process; nnU-Net's variables are set back afterwards."""
    module = load(SCRIPTS / "benchmark.py")
    before = dict(os.environ)

    def call(*arguments: object) -> None:
        module.benchmark(module.read_arguments([str(argument) for argument in arguments]))

    yield call
    os.environ.clear()
    os.environ.update(before)


def test_what_cannot_be_trained_is_said_first(data, benchmark, tmp_path):
    work = tmp_path / "work"
    common = ("acdc", "--data", data, "--work", work, "--labelled")
    with pytest.raises(ValueError, match="--labelled is one of 2, all, not 7"):
        benchmark(*common, 7)
    with pytest.raises(RuntimeError, match="nnUNetTrainerX_benchmark"):
        benchmark(*common, 2, "--trainers", "nnUNetTrainerX")
    with pytest.raises(ValueError, match="Did you mean 'ema_decay'"):
        benchmark(*common, 2, "--settings", '{"ema_decy": 0.99}')
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no cuda device on this machine"):
            benchmark(*common, 2, "-device", "cuda")
    (data / "split.json").unlink()
    with pytest.raises(ValueError, match=r"it has no split\.json"):
        benchmark(*common, 2)
    assert not work.exists()


@pytest.fixture
def in_one_process(monkeypatch, in_this_process) -> None:
    """The trainings and everything else that the script does in processes of their own, prediction
    aside: starting them would take most of the time."""
    from bench import trainings

    monkeypatch.setattr(run_training.multiprocessing, "cpu_count", lambda: 1)
    monkeypatch.setattr(trainings, "ThreadPoolExecutor", workers.ProcessPoolExecutor)
    monkeypatch.setattr(trainings, "launch_one", lambda job, logs: launch.execute(job))
    monkeypatch.setattr("sys.argv", sys.argv)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


OUTSIDE = """
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
class OutsideTrainer(nnUNetTrainerMeanTeacher):
    pass
"""


def test_from_data_to_the_table(data, benchmark, tmp_path, monkeypatch, in_one_process):
    """Two trainings of the smallest kind, one of a trainer from outside; then nothing is trained
    again, neither for postprocessing nor for other cases."""
    from bench import trainings
    from bench.datasets import DATASETS, BenchDataset, CpuConfiguration

    tiny = {"2d_small": CpuConfiguration((6, 6), (16, 16), 4, 3, 8, 50)}
    monkeypatch.setitem(DATASETS, "acdc", BenchDataset("Dataset027_ACDC", ".+", "2d", tiny))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "outside.py").write_text(OUTSIDE)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "outside"), prepend=os.pathsep)
    work = tmp_path / "work"
    call = ("acdc", "--data", data, "--work", work, "--labelled", 2, "--np", 1, "--trainers")
    both = ("nnUNetTrainer", "OutsideTrainer")
    benchmark(*call, *both, "--no-postprocessing")
    rows = pd.read_csv(work / "results.csv").set_index("trainer")
    assert sorted(rows.index) == ["OutsideTrainer", "nnUNetTrainer"]
    wanted = {"dataset": "acdc", "split": "val", "cases": "val", "seed": 0, "settings": "{}",
              "labelled": 2, "iterations": 50, "device": "cpu"}  # fmt: skip
    for name, value in wanted.items():
        assert set(rows[name]) == {value}
    assert (rows["CPU ms per iteration"] > 0).all() and (rows["peak memory (GiB)"] > 0).all()
    assert rows["commit"].notna().all() and "post. DSC" not in rows
    model = "OutsideTrainer_benchmark__nnUNetPlans__2d_small"
    folder = work / "acdc" / "results_50" / "Dataset027_ACDC" / model / "fold_0"
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    of_case = [np.nanmean([metrics["Dice"] for metrics in case["metrics"].values()])
               for case in summary["metric_per_case"]]  # fmt: skip
    assert len(of_case) == 2
    assert rows["DSC"]["OutsideTrainer"] == pytest.approx(np.mean(of_case))

    def trains(job, logs):
        raise AssertionError(f"{job} was trained again")

    with monkeypatch.context() as patch:
        patch.setattr(trainings, "launch_one", trains)
        benchmark(*call, *both)
    rows = pd.read_csv(work / "results.csv").set_index("trainer")
    assert len(rows) == 2 and rows["post. DSC"].notna().all()
    tables = work / "acdc" / "tables" / "postprocessed"
    assert "| 10 % | PLGCL | paper | 0.891 |" in (tables / "beside_paper.md").read_text()

    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
        shutil.copy(min((data / part).iterdir()), tmp_path / part)
    test = ("--test", tmp_path / "imagesTr", tmp_path / "labelsTr", "-o", tmp_path / "out")
    benchmark(*call, "OutsideTrainer", *test)
    rows = pd.read_csv(work / "results.csv")
    assert rows["cases"].value_counts().to_dict() == {"val": 2, str(tmp_path / "imagesTr"): 1}
    scores = pd.read_csv(tmp_path / "out" / "postprocessed" / "scores.csv")
    (label,) = (tmp_path / "labelsTr").iterdir()
    assert set(scores["case"]) == {label.name.removesuffix(".nii.gz")}
    with pytest.raises(FileNotFoundError, match="not finished"):
        benchmark(*call, "OutsideTrainer", "--first-seed", 1, *test)


def test_a_loss_in_float32_stays_what_it_is():
    in_float32 = runpy.run_path(str(TRAINERS / "benchmark_trainers.py"))["_in_float32"]
    loss = bare_trainer(exclusive=True).loss
    kind, seen = type(loss), []
    loss.forward = in_float32(loss.forward)
    loss.loss.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    logits = [torch.zeros(2, 3, size, size, dtype=torch.bfloat16) for size in (16, 8, 4)]
    loss(logits, [torch.zeros(2, 1, *x.shape[2:]) for x in logits])
    assert set(seen) == {torch.float32} and type(loss) is kind
