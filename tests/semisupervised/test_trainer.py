import shutil

import numpy as np
import pytest
import torch
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised import loaders
from nnunetv2_plgcl.semisupervised import log as series
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

TRAINERS = [nnUNetTrainerMeanTeacher, nnUNetTrainerPLGCL]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.student.state_dict().items()}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs"


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_both_stages_train_on_real_mri(prepared, trainer_class):
    trainer = make_trainer(tiny(trainer_class), prepared)
    trainer.initialize()
    before = weights(trainer)
    trainer.run_training()
    after = weights(trainer)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    log = trainer.logger.local_logger.my_fantastic_logging
    assert all(len(values) == 3 for values in log.values())
    assert log["loss_consistency"][0] == 0, "warm-up has no unlabelled patches"
    assert log["loss_consistency"][1] > 0 and log["loss_consistency"][2] > 0
    assert log["consistency_rampup"][0] == 0 and log["consistency_rampup"][2] == 1
    draws = trainer_class is nnUNetTrainerPLGCL
    assert all((sum(counts) > 0) == draws for counts in log[series.PATCHES])
    assert all((value > 0) == draws for value in log["loss_contrastive"])


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_labels_of_unlabelled_cases_are_never_opened(prepared, trainer_class):
    def train():
        shutil.rmtree(prepared.results, ignore_errors=True)
        trainer = make_trainer(tiny(trainer_class), prepared)
        trainer.run_training()
        return weights(trainer)

    with_labels = train()
    for number, case in enumerate(prepared.split["unlabelled"]):
        seg, properties = (prepared.case_folder / f"{case}{s}" for s in ("_seg.b2nd", ".pkl"))
        raw = prepared.base / "nnUNet_raw" / prepared.name / "labelsTr" / f"{case}.nii.gz"
        ground_truth = prepared.preprocessed / "gt_segmentations" / f"{case}.nii.gz"
        for file in (seg, properties, raw, ground_truth):
            if number % 2:
                file.unlink()
            else:
                file.write_bytes(b"not a label")
    assert_same(train(), with_labels)


def test_seed_decides_weights_and_order(prepared):
    def train(seed):
        shutil.rmtree(prepared.results, ignore_errors=True)
        trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 1), prepared, {"seed": seed})
        trainer.run_training()
        return weights(trainer)

    first = train(1)
    assert_same(train(1), first)
    assert any(not torch.equal(first[name], value) for name, value in train(2).items())


def test_warmup_uses_the_full_batch_and_then_it_is_divided(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerMeanTeacher), prepared, {"labelled_fraction": 0.25})
    seen = []

    def record(batch):
        images, _ = trainer.labelled_batch(batch)
        weak, strong = trainer.unlabelled_views(images)
        assert weak.shape == strong.shape and set(batch["keys"]) <= set(prepared.split["train"])
        seen.append((len(images), len(weak)))
        return type(trainer).train_step(trainer, batch)

    def validate(batch):
        validated[trainer.current_epoch] += len(batch["data"])
        return type(trainer).validation_step(trainer, batch)

    validated = [0, 0, 0]
    trainer.train_step, trainer.validation_step = record, validate
    trainer.run_training()
    assert seen == [(4, 0)] * 2 + [(1, 3)] * 4
    assert validated == [4, 4, 4], "as many validation patches as with nnU-Net's batch"


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_cut_out_blanks_as_many_strong_views_as_asked_for(prepared, probability):
    settings = {"cutout_probability": probability, "warmup_fraction": 0.0}
    trainer = make_trainer(tiny(nnUNetTrainerMeanTeacher), prepared, settings)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(3):
        weak, strong = trainer.unlabelled_views(like=next(trainer.dataloader_train)["data"])
        blank = ((strong == 0) & (weak != 0)).flatten(1).sum(1)
        assert ((blank >= 16) == (probability == 1)).all()


@pytest.mark.parametrize("strong_views", [0, 1])
def test_without_a_strong_view_the_weak_one_has_nnunets_whole_augmentation(
    prepared, monkeypatch, strong_views
):
    trainer_class = tiny(nnUNetTrainerMeanTeacher)
    trainer_class.strong_views = strong_views
    trainer = make_trainer(trainer_class, prepared)
    trainer.initialize()
    trainer.dataset_unlabelled = None  # not looked at
    given = []
    monkeypatch.setattr(loaders, "unlabelled_loader", lambda *args, **_: given.append(args[5]))
    trainer._unlabelled_loader(0)
    (views,) = given
    names = {type(getattr(t, "transform", t)).__name__ for t in views.geometry.transforms}
    assert names >= {"SpatialTransform", "MirrorTransform"}
    intensity = {"GaussianNoiseTransform", "GammaTransform", "ContrastTransform"}
    assert names & intensity == (set() if strong_views else intensity)


def test_foreground_is_forced_as_often_as_in_nnunet(prepared):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = make_trainer(tiny(nnUNetTrainerMeanTeacher), prepared)
    trainer.initialize()
    stock = make_trainer(nnUNetTrainer, prepared)
    stock.initialize()
    forced = [
        index >= round(stock.batch_size * (1 - stock.oversample_foreground_percent))
        for index in range(stock.batch_size)
    ]
    assert trainer.oversample_foreground_percent == np.mean(forced)


@pytest.mark.parametrize("deployed", ["teacher", "student"])
def test_validation_and_checkpoint_use_the_deployed_weights(prepared, deployed, tmp_path):
    trainer = make_trainer(
        tiny(nnUNetTrainerMeanTeacher, 2, 2), prepared, {"deployed_weights": deployed}
    )
    trainer.run_training()
    student, teacher = trainer.student.state_dict(), trainer.teacher.module.state_dict()
    expected = {"teacher": teacher, "student": student}[deployed]
    assert any(not torch.equal(student[name], teacher[name]) for name in student)
    trainer.save_checkpoint(str(tmp_path / "saved.pth"))
    saved = torch.load(tmp_path / "saved.pth", weights_only=False)
    assert_same(saved["network_weights"], expected)
    with trainer.deployed_weights():
        assert_same(weights(trainer), {name: value.clone() for name, value in expected.items()})
    assert_same(saved["plgcl"]["student"], weights(trainer))


def test_pretrained_weights_reach_the_teacher(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerMeanTeacher), prepared)
    trainer.initialize()
    with torch.no_grad():  # what load_pretrained_weights does between initialize and training
        for parameter in trainer.student.parameters():
            parameter.fill_(0.25)
    trainer.on_train_start()
    assert all((parameter == 0.25).all() for parameter in trainer.teacher.module.parameters())


def test_a_loss_that_is_not_a_number_stops_the_training_and_spares_the_checkpoint(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)

    def poisoned(logits, target):
        value = type(trainer).supervised_loss(trainer, logits, target)
        return value * float("nan") if trainer.current_epoch == 1 else value

    trainer.supervised_loss = poisoned
    with pytest.raises(RuntimeError, match="not finite in epoch 1.*loss_supervised nan.*--c"):
        trainer.run_training()
    saved = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)
    assert saved["current_epoch"] == 1
    assert all(torch.isfinite(value).all() for value in saved["network_weights"].values())


def test_progress_picture_gains_a_panel_of_the_same_width(prepared):
    import matplotlib.pyplot as plt
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 1, picture=True), prepared)
    trainer.run_training()
    ours = plt.imread(f"{trainer.output_folder}/progress.png")
    LocalLogger.plot_progress_png(trainer.logger.local_logger, trainer.output_folder)
    stock = plt.imread(f"{trainer.output_folder}/progress.png")
    assert ours.shape[1] == stock.shape[1] and ours.shape[0] > stock.shape[0]
    np.testing.assert_array_equal(ours[: len(stock), :, :3], stock[..., :3])


def test_other_loggers_get_the_series_as_wandb_does(prepared):
    class Recorder:
        """The methods of nnU-Net's WandbLogger."""

        def __init__(self):
            self.config, self.series = {}, {}

        def update_config(self, config):
            self.config.update(config)

        def log(self, key, value, step):
            self.series.setdefault(key, []).append((step, float(value)))

    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    recorder = Recorder()
    trainer.logger.loggers.append(recorder)
    trainer.run_training()
    for key in (*series.LOSSES, *series.SHARES, f"{series.PATCHES}/class_1"):
        assert [step for step, _ in recorder.series[key]] == [0, 1, 2]
    assert recorder.config["plgcl"]["temperature"] == 0.2


def test_configuration_is_in_the_log_and_the_debug_file(prepared):
    import json
    from pathlib import Path

    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared, {"temperature": 0.37})
    trainer.on_train_start()
    assert '"temperature": 0.37' in Path(trainer.log_file).read_text()
    debug = json.loads((Path(trainer.output_folder) / "debug.json").read_text())
    assert "temperature=0.37" in debug["config"]
