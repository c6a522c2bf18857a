"""Every method trains both stages on real MRI, resumes to the bit, and predicts as nnU-Net does."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, private_copy
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from training import (
    assert_equal_to_the_bit,
    command_environment,
    keep_latest,
    make_trainer,
    nnunet_command,
    tiny,
)

from nnunetv2_plgcl.export import export_model
from nnunetv2_plgcl.semisupervised.log import LARGEST_CLASS
from nnunetv2_plgcl.trainers import trainer_classes

METHODS = [
    "ADMT",
    "BCP",
    "CPS",
    "DTC",
    "ICT",
    "LCLPL",
    "MCNetPlus",
    "SelfTraining",
    "TCSM",
    "UAMT",
    "UniMatch",
    "URPC",
    "VolumePseudoLabels",
]
# a network of a few steps is sure of nothing, and a turn must end within them
SETTINGS = {
    "ADMT": {"confidence_threshold": 0.0, "longest_turn": 2},
    "UniMatch": {"confidence_threshold": 0.0},
}
# one loss for both, reported as supervised; LCLPL has its contrastive one
NO_CONSISTENCY = ["BCP", "LCLPL", "SelfTraining", "VolumePseudoLabels"]
# labelled patches take part in consistency, in warm-up with weight 0
ALL_PATCHES = ["DTC", "MCNetPlus"]
NO_REGIONS = ["LCLPL"]


def method(name: str) -> type:
    return trainer_classes()[f"nnUNetTrainer{name}"]


def test_every_method_is_tested_and_described():
    trainers = {n for n, t in trainer_classes().items() if ".methods." in t.__module__}
    assert trainers == {f"nnUNetTrainer{name}" for name in METHODS}
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    assert all(f"| `{trainer}` |" in page for trainer in trainers)


def architecture(prepared, **changes):
    """Four stages, as URPC needs them."""
    plans = prepared.plans()["configurations"][TINY]["architecture"]
    arguments = {
        **plans["arch_kwargs"],
        "n_stages": 4,
        "features_per_stage": [4, 8, 16, 16],
        "n_conv_per_stage": [1, 1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1, 1],
        "kernel_sizes": [[3, 3]] * 4,
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
    }
    return {**plans, "arch_kwargs": {**arguments, **changes}}


def assert_trained(name, trainer):
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(log["loss_supervised"]).all() and log["loss_supervised"][-1] > 0
    assert np.isfinite(log["loss_consistency"]).all()
    assert (log["loss_consistency"][0] != 0) == (name in ALL_PATCHES)
    assert (log["loss_consistency"][-1] != 0) == (name not in NO_CONSISTENCY)
    assert (log["loss_contrastive"][-1] > 0) == (name == "LCLPL")
    shares = log[LARGEST_CLASS]
    assert shares[0] == 0 < shares[-1] <= 1, "of the labels that unlabelled patches learnt from"
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


@pytest.fixture(scope="module", params=METHODS)
def trained(request, prepared_once, tmp_path_factory):
    """Three short epochs in 2D, the first of them warm-up; the checkpoint before the last is kept
    as ``latest``."""
    base = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        prepared = private_copy(prepared_once, base, patch)

        def make():
            changed = {"architecture": architecture(prepared)}
            settings = SETTINGS.get(request.param)
            return make_trainer(tiny(method(request.param), 3, 2), prepared, settings, **changed)

        trainer, latest = make(), base / "latest.pth"
        keep_latest(trainer, 2, latest)
        trainer.run_training()
        model = Path(trainer.output_folder_base)
        yield SimpleNamespace(
            name=request.param,
            prepared=prepared,
            trainer=trainer,
            latest=latest,
            make=make,
            model=model,
            final=torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False),
        )


def test_both_stages_train_on_real_mri(trained):
    assert_trained(trained.name, trained.trainer)
    untrained = trained.make()
    untrained.initialize()
    before, after = untrained.student.state_dict(), trained.trainer.student.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_continued_training_equals_an_undisturbed_one_to_the_bit(trained):
    continued = trained.make()
    continued.load_checkpoint(str(trained.latest))
    assert continued.current_epoch == 2
    continued.output_folder = str(trained.prepared.base / "continued")
    Path(continued.output_folder).mkdir()
    continued.run_training()
    result = torch.load(Path(continued.output_folder) / "checkpoint_final.pth", weights_only=False)
    for checkpoint in (result, trained.final):
        for key in ("epoch_start_timestamps", "epoch_end_timestamps"):
            checkpoint["logging"].pop(key, None)
    assert_equal_to_the_bit(result, trained.final)


def prediction(model: Path) -> np.ndarray:
    """Probabilities that nnU-Net's own predictor gives; it loads weights strictly."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 48, 48)))
    return predictor.predict_sliding_window_return_logits(image.float()).numpy()


def test_the_exported_model_predicts_the_same(trained, tmp_path):
    exported, _ = export_model(trained.model, tmp_path / "out")
    here = prediction(trained.model)
    assert np.ptp(here) > 0
    np.testing.assert_array_equal(prediction(exported), here)


@pytest.mark.parametrize("name", METHODS)
def test_three_dimensions(prepared, name):
    of_3d = architecture(
        prepared,
        conv_op="torch.nn.modules.conv.Conv3d",
        norm_op="torch.nn.modules.instancenorm.InstanceNorm3d",
        kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
    )
    trainer = make_trainer(
        tiny(method(name), 2, 1),
        prepared,
        {"warmup_fraction": 0.5, **SETTINGS.get(name, {})},
        patch_size=[8, 32, 32],
        spacing=[10.0, 3.0, 3.0],
        batch_size=4,
        architecture=of_3d,
    )
    trainer.run_training()
    assert_trained(name, trainer)


@pytest.mark.parametrize("name", METHODS)
def test_regions(prepared, name):
    dataset = prepared.dataset_json()
    dataset["labels"] = {"background": 0, "heart": [1, 2, 3], "left ventricle": [2, 3], "LV": 3}
    dataset["regions_class_order"] = [1, 2, 3]
    (prepared.preprocessed / "dataset.json").write_text(json.dumps(dataset))
    trainer = make_trainer(
        tiny(method(name), 2, 1),
        prepared,
        {"warmup_fraction": 0.5, **SETTINGS.get(name, {})},
        architecture=architecture(prepared),
    )
    if name in NO_REGIONS:
        with pytest.raises(NotImplementedError, match="Write plain labels into dataset.json"):
            trainer.initialize()
        return
    trainer.run_training()
    assert not trainer.exclusive
    assert_trained(name, trainer)


@pytest.mark.parametrize("name", METHODS)
def test_published_numbers_are_settings_that_the_method_has(prepared, name):
    published = make_trainer(method(name), prepared, {"preset": "published"}).config
    for key, value in method(name).settings_class.published.items():
        assert getattr(published, key) == value


@pytest.mark.parametrize("name", ["ADMT", "ICT"])
def test_one_unlabelled_patch_is_refused_where_two_are_needed(prepared, name):
    trainer = make_trainer(tiny(method(name), 2, 1), prepared, batch_size=2)
    with pytest.raises(ValueError, match='has one in a batch of 2. Raise "batch_size"'):
        trainer.initialize()


def test_one_unlabelled_patch_is_said_where_it_leaves_nothing_to_mix(prepared):
    trainer = make_trainer(tiny(method("UniMatch"), 2, 1), prepared, batch_size=2)
    trainer.initialize()
    said = "CutMix mixes unlabelled patches with one another, but configuration"
    assert said in Path(trainer.log_file).read_text()


def test_urpc_says_what_it_needs(prepared):
    trainer = make_trainer(tiny(method("URPC"), 2, 1), prepared)  # of three stages
    with pytest.raises(NotImplementedError, match="trains only 1.*four stages or more"):
        trainer.initialize()


@pytest.mark.parametrize("trained", ["UAMT"], indirect=True)
def test_commands_predict_and_export(trained, tmp_path):
    images, case = tmp_path / "images", trained.prepared.split["val"][0]
    images.mkdir()
    raw = trained.prepared.base / "nnUNet_raw" / trained.prepared.name / "imagesTr"
    shutil.copy(raw / f"{case}_0000.nii.gz", images)
    trainer = f"nnUNetTrainer{trained.name}"
    for command in (
        ["nnUNetv2_predict", "-i", images, "-o", tmp_path / "out", "-d", 901, "-c", TINY, "-f", 0,
         "-tr", trainer, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta"],
        ["nnUNetv2_plgcl_export", trained.model, tmp_path / "exported"],
    ):  # fmt: skip
        done = subprocess.run(
            nnunet_command(*command),
            env=command_environment(trained.prepared),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert (tmp_path / "out" / f"{case}.nii.gz").is_file()
    assert (tmp_path / "exported.zip").is_file()
