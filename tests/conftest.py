import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import SimpleITK as sitk

from nnunetv2_plgcl.datasets.phantom import write_phantom

SHARED_ACDC = Path(__file__).resolve().parents[2] / "shared" / "data" / "acdc"
TINY = "2d_tiny"
pytest_plugins = ["comparing", "converting"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("takes_minutes") is None)


@pytest.fixture(scope="session", autouse=True)
def nnunet_in_threads() -> Iterator[None]:
    """nnU-Net's pools without new processes, which take most of a tiny training's time; where tests
    start its commands, these have real ones."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.inference import predict_from_raw_data
    from nnunetv2.postprocessing import remove_connected_components
    from nnunetv2.preprocessing.preprocessors import default_preprocessor
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    threads = SimpleNamespace(
        get_context=lambda _: SimpleNamespace(Pool=ThreadPool),
        TimeoutError=multiprocessing.TimeoutError,
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            evaluate_predictions, fingerprint_extractor, predict_from_raw_data,
            remove_connected_components, default_preprocessor, nnUNetTrainer,
        ):  # fmt: skip
            patch.setattr(module, "multiprocessing", threads)
        yield


@pytest.fixture(scope="session")
def acdc() -> Path:
    """Real cardiac MRI in nnU-Net's raw layout; tests that want it are skipped without it."""
    if not SHARED_ACDC.is_dir():
        pytest.skip(f"no ACDC data at {SHARED_ACDC}")
    return SHARED_ACDC


@dataclass(frozen=True)
class Prepared:
    """A planned and preprocessed dataset with a labelled / unlabelled / validation split."""

    base: Path
    name: str
    split: dict

    @property
    def preprocessed(self) -> Path:
        return self.base / "nnUNet_preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.base / "nnUNet_results" / self.name

    @property
    def case_folder(self) -> Path:
        return self.preprocessed / f"nnUNetPlans_{TINY}"

    def plans(self) -> dict:
        return json.loads((self.preprocessed / "nnUNetPlans.json").read_text())

    def dataset_json(self) -> dict:
        return json.loads((self.preprocessed / "dataset.json").read_text())

    def environment(self) -> dict[str, str]:
        return {
            **{f"nnUNet_{f}": str(self.base / f"nnUNet_{f}") for f in
               ("raw", "preprocessed", "results")},
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
        }  # fmt: skip


def write_raw_dataset(raw: Path) -> list[str]:
    """Twelve volumes in nnU-Net's raw layout: real MRI where it is at hand, else the phantom."""
    if not SHARED_ACDC.is_dir():
        return write_phantom(raw, training=6, test=0)
    cases = sorted(p.name[:-7] for p in (SHARED_ACDC / "labelsTr").glob("*_frame01.nii.gz"))[:12]
    for case in cases:
        for folder, file in (("imagesTr", f"{case}_0000"), ("labelsTr", case)):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(SHARED_ACDC / folder / f"{file}.nii.gz", raw / folder)
    dataset = json.loads((SHARED_ACDC / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**dataset, "numTraining": len(cases)}))
    return cases


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Twelve volumes: 4 labelled, 6 unlabelled, 2 in validation."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    base, name = tmp_path_factory.mktemp("nnunet"), "Dataset901_Heart"
    cases = write_raw_dataset(base / "nnUNet_raw" / name)
    split = {"train": cases[:4], "unlabelled": cases[4:10], "val": cases[10:]}
    prepared = Prepared(base, name, split)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in prepared.environment().items():
            if name != "nnUNet_n_proc_DA":  # the planner crashes under 0
                patch.setenv(name, value)
        nnunet.extract_fingerprints([901], num_processes=1, show_progress_bar=False)
        nnunet.plan_experiments([901])
        plans = prepared.plans()
        architecture = json.loads(json.dumps(plans["configurations"]["2d"]["architecture"]))
        arguments = architecture["arch_kwargs"]
        for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
            arguments[key] = arguments[key][:3]
        arguments.update(
            n_stages=3, features_per_stage=[8, 16, 32], n_conv_per_stage_decoder=[1, 1]
        )
        plans["configurations"][TINY] = {
            "inherits_from": "2d",
            "data_identifier": f"nnUNetPlans_{TINY}",
            "spacing": [3.0, 3.0],
            "patch_size": [48, 48],
            "batch_size": 4,
            "architecture": architecture,
        }
        (prepared.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
        (prepared.preprocessed / "splits_final.json").write_text(json.dumps([split]))
        nnunet.preprocess([901], configurations=[TINY], num_processes=[1], show_progress_bar=False)
    return prepared


@pytest.fixture
def prepared(prepared_once: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A private copy of the prepared dataset, with nnU-Net's environment set to it."""
    return private_copy(prepared_once, tmp_path, monkeypatch)


def private_copy(original: Prepared, base: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Another one in an empty folder, with nnU-Net's environment set to it."""
    mine = Prepared(base, original.name, original.split)
    shutil.copytree(original.base, base, dirs_exist_ok=True)
    for name, value in mine.environment().items():
        monkeypatch.setenv(name, value)
    os.makedirs(base / "nnUNet_results", exist_ok=True)
    return mine


def add_island(file: Path) -> None:
    """Two voxels of class 1 in a corner of a segmentation, far from the rest."""
    image = sitk.ReadImage(file)
    segmentation = sitk.GetArrayFromImage(image)
    assert not segmentation[:3, :4, :4].any()
    segmentation[0, 0, :2] = 1
    changed = sitk.GetImageFromArray(segmentation)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, file)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our commands without worker processes."""
    without_workers(monkeypatch)


def without_workers(patch: pytest.MonkeyPatch) -> None:
    """Worker processes take seconds to start; one test for each command has real ones."""
    from nnunetv2_plgcl import workers

    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *arguments):
            future = workers.Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

        def shutdown(self, **_):
            pass

    patch.setattr(workers, "ProcessPoolExecutor", Pool)
