"""Every choice of the contrastive part as the trainer runs it, on real MRI."""

import inspect
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from training import assert_equal_to_the_bit, make_trainer, tiny

from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.trainer import nnUNetTrainerContrast
from nnunetv2_plgcl.semisupervised import log as series
from nnunetv2_plgcl.trainers import trainer_classes
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster
from tests.oracles import poster as oracle

DEFAULTS_OF_01 = {
    "seed": 0,
    "labelled_fraction": 0.5,
    "warmup_fraction": 1 / 3,
    "ema_decay": 0.999,
    "consistency_weight": 1.0,
    "consistency_rampup_fraction": 0.25,
    "consistency_target": "soft",
    "consistency_loss": "cross_entropy",
    "confidence_threshold": 0.0,
    "cutout_probability": 0.5,
    "cutmix_probability": 0.0,
    "contrastive_weight": 0.1,
    "contrastive_rampup_fraction": 1 / 3,
    "temperature": 0.2,
    "anchors": 128,
    "memory_length": 4096,
    "window_fraction": 0.25,
    "guide": "entropy",
    "balanced_sides": True,
    "embedding": "feature",
    "feature_stages": (-2,),
    "expectation": "sampled",
    "deployed_weights": "teacher",
}
ABLATIONS = {
    "noWarmup": {"warmup_fraction": 0.0},
    "noConsistency": {"consistency_weight": 0.0},
    "confidenceGuide": {"guide": "confidence"},
    "cosineGuide": {"guide": "cosine"},
    "cropEmbedding": {"embedding": "crop"},
    "closedForm": {"expectation": "closed_form"},
    "plainCE": {},
    "noContrast": {},
}


def trainer_class(ablation: str) -> type:
    name = f"nnUNetTrainerPLGCL_{ablation}"
    return trainer_classes()[name]


def train(trainer):
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    for key in series.LOSSES:
        assert np.isfinite(log[key]).all()
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())
    return log


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_each_ablation_changes_what_its_name_says_and_trains(prepared, ablation):
    trainer = make_trainer(tiny(trainer_class(ablation)), prepared)
    assert trainer.config == trainer.settings_class(**ABLATIONS[ablation])
    log = train(trainer)
    has_contrast = ablation != "noContrast"
    assert isinstance(trainer, nnUNetTrainerContrast) == has_contrast
    assert all((loss > 0) == has_contrast for loss in log["loss_contrastive"])
    assert log["loss_consistency"][-1] > 0
    assert (log["loss_consistency"][0] > 0) == (ablation == "noWarmup")


def test_plain_cross_entropy_is_that_of_nnunet(prepared):
    from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss

    trainer = make_trainer(tiny(trainer_class("plainCE")), prepared)
    trainer.initialize()
    assert type(trainer.loss.loss) is RobustCrossEntropyLoss


def test_without_contrast_the_mean_teacher_remains():
    assert issubclass(trainer_class("noContrast"), nnUNetTrainerMeanTeacher)


def test_without_consistency_the_student_does_not_learn_from_the_strong_view(prepared):
    trainer = make_trainer(tiny(trainer_class("noConsistency")), prepared)
    seen = []

    def optimise(loss):
        if not trainer.is_warmup:
            seen.append(torch.autograd.grad(loss, trainer.strong_logits, retain_graph=True)[0])
        type(trainer).optimise(trainer, loss)

    def consistency_loss(strong_logits, pseudo_label):
        trainer.strong_logits = strong_logits
        return type(trainer).consistency_loss(trainer, strong_logits, pseudo_label)

    trainer.optimise, trainer.consistency_loss = optimise, consistency_loss
    trainer.run_training()
    assert len(seen) == 4 and all((gradient == 0).all() for gradient in seen)


def test_the_poster_is_version_01_to_the_bit(prepared):
    poster = tiny(trainer_class("poster"), 3, 3)
    results = []
    for train_step in (poster.train_step, oracle.train_step):
        stepping = type(poster.__name__, (poster,), {"train_step": train_step})
        trainer = make_trainer(stepping, prepared)
        config = asdict(trainer.config)
        assert {name: config[name] for name in DEFAULTS_OF_01} == DEFAULTS_OF_01
        trainer.run_training()
        final = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
        results.append({key: final[key] for key in ("network_weights", "optimizer_state", "plgcl")})
        shutil.rmtree(trainer.output_folder)
    assert_equal_to_the_bit(*results)


def test_every_registered_ablation_is_tested_and_documented():
    prefix = "nnUNetTrainerPLGCL_"
    found = {n.removeprefix(prefix) for n in trainer_classes() if n.startswith(prefix)}
    assert found - {"10epochs", "poster"} == set(ABLATIONS)
    documented = (Path(__file__).parents[1] / "docs" / "plgcl.md").read_text()
    for name in ABLATIONS:
        assert f"`{prefix}{name}`" in documented
        assert len(inspect.getsource(trainer_class(name)).splitlines()) <= 5


@pytest.mark.parametrize("guide", ["entropy", "confidence"])
def test_with_balanced_sides_every_class_in_the_image_has_its_anchors(prepared, guide):
    settings = {"guide": guide, "balanced_sides": True, "anchors": 32}
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, settings)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    images, target = trainer.labelled_batch(next(trainer.dataloader_train))
    labels = trainer.label_maps(target)
    windows = trainer.draw_windows((images, []), labels)
    positives = (windows.valid & windows.positive).sum(-1)
    present = labels.flatten(2).any(-1)
    assert (positives > 0).equal(present)
    assert positives.max() == 32 // labels.shape[0] // labels.shape[1]


@pytest.mark.parametrize(
    ("guide", "embedding", "expectation", "most_classes"),
    [
        (guide, embedding, expectation, 2 if (number + (embedding == "crop")) % 2 else None)
        for number, guide in enumerate(["entropy", "lowest_entropy", "confidence", "cosine"])
        for embedding in ("feature", "crop")
        for expectation in ("sampled", "closed_form")
    ],
)
def test_choices_combine(prepared, guide, embedding, expectation, most_classes):
    settings = {"guide": guide, "embedding": embedding, "expectation": expectation}
    trainer_class = tiny(nnUNetTrainerPLGCL_poster, 2, 2)
    trainer_class.most_classes = most_classes
    log = train(make_trainer(trainer_class, prepared, settings))
    assert log["loss_contrastive"][-1] > 0
    assert all(sum(counts) > 0 for counts in log[series.PATCHES])


def test_a_step_of_some_classes_is_that_of_data_with_these_classes_alone(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster, 2, 2), prepared, {"memory_draws": 16})
    trainer.initialize()
    torch.manual_seed(0)
    images = torch.randn(2, 1, 24, 24)
    confidence = torch.randn(2, 3, 6, 6).softmax(1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    confidence[:, 1] = 0.0  # nowhere: the other two are drawn
    features = [torch.randn(2, trainer.student_features.num_channels, 6, 6)]
    seen, memories = (images, features), ("positives", "negatives")
    losses, counts = [], []
    for maps, most in ((confidence, 2), (confidence[:, ::2], None)):
        trainer.most_classes = most
        for name in memories:
            setattr(trainer, name, ClassMemory(maps.shape[1], 64))
        trainer.window_generator.manual_seed(0)
        if most is None:
            torch.rand(3, generator=trainer.window_generator)  # what drawing the classes takes
        windows = trainer.draw_windows(seen, maps)
        losses.append(trainer.contrastive_loss(seen, seen, maps, windows))
        counts.append(trainer.patches_per_class(windows).tolist())
    assert counts[0][:3] == [counts[1][0], 0, counts[1][1]] and min(counts[1]) > 0
    assert losses[0] > 0 and torch.equal(*losses)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_total_loss_is_the_weighted_sum_and_gamma_ramps_up(prepared, fraction):
    settings = {"contrastive_weight": 2.0, "contrastive_rampup_fraction": fraction}
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster, epochs=2), prepared, settings)
    steps = []

    def finish_step(**reported):
        steps.append({**reported, "beta": trainer.consistency_rampup})
        return type(trainer).finish_step(trainer, **reported)

    trainer.finish_step = finish_step
    trainer.run_training()
    # two epochs of two iterations; the ramp is over after the first epoch
    ramp = [math.exp(-5), math.exp(-1.25), 1, 1] if fraction else [1] * 4
    for step, gamma in zip(steps, ramp, strict=True):
        total = step["loss_supervised"] + step["beta"] * step["loss_consistency"]
        torch.testing.assert_close(step["loss"], total + 2 * gamma * step["loss_contrastive"])


@pytest.mark.parametrize("embedding", ["feature", "crop"])
def test_cutmix_keeps_images_features_and_pseudo_labels_of_both_networks_aligned(
    prepared, embedding
):
    settings = {"cutmix_probability": 1.0, "warmup_fraction": 0.0, "embedding": embedding}
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, settings)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    unlabelled = trainer.unlabelled_batch(like=batch["data"])
    weak, strong = unlabelled.weak, unlabelled.strong[0]
    labelled = len(batch["data"])
    seen = {}

    def draw_windows(teacher, confidence, labelled):
        seen.update(teacher=teacher, confidence=confidence)
        return type(trainer).draw_windows(trainer, teacher, confidence, labelled)

    def student_logits(images):
        seen["images"] = images
        return type(trainer).student_logits(trainer, images)

    trainer.unlabelled_batch = lambda like: unlabelled
    trainer.draw_windows, trainer.student_logits = draw_windows, student_logits
    plain = trainer.pseudo_label(weak)
    plain_features = trainer.teacher_features.take() if embedding == "feature" else []
    torch.manual_seed(0)
    mix = trainer.cutmix(strong)
    torch.manual_seed(0)
    trainer.train_step(batch)
    assert not torch.equal(mix(strong), strong)
    images, features = seen["teacher"]
    assert torch.equal(seen["images"][labelled:], mix(strong))
    assert torch.equal(images[labelled:], mix(weak))
    torch.testing.assert_close(seen["confidence"][labelled:], mix(plain))
    for stage, unmixed in zip(features, plain_features, strict=True):
        torch.testing.assert_close(stage[labelled:], mix(unmixed))


@pytest.mark.parametrize("target", ["soft", "hard"])
def test_consistency_with_dice_and_a_threshold(prepared, target):
    settings = {"consistency_loss": "dice_cross_entropy", "consistency_target": target,
                "confidence_threshold": 0.3, "cutmix_probability": 0.5}  # fmt: skip
    log = train(make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, settings))
    assert log["loss_consistency"][0] == 0 and log["loss_consistency"][-1] != 0


@pytest.mark.parametrize("guide", ["entropy", "cosine"])
def test_without_weight_on_the_contrast_it_is_the_mean_teacher_of_the_same_seed(prepared, guide):
    """So trainers of one seed see the same batches: drawing windows does not disturb them."""
    weights = []
    for trainer_class, settings in (
        (nnUNetTrainerMeanTeacher, {}),
        (nnUNetTrainerPLGCL_poster, {"contrastive_weight": 0, "guide": guide}),
    ):
        trainer = make_trainer(
            tiny(trainer_class), prepared, {"cutmix_probability": 0.5, **settings}
        )
        trainer.run_training()
        weights.append(trainer.student.state_dict())
    assert_equal_to_the_bit(*weights)


def test_several_feature_stages(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, {"feature_stages": [-1, 0]})
    assert train(trainer)["loss_contrastive"][-1] > 0
    assert trainer.head.hidden.in_features == 32 + 8


def test_a_stage_that_the_network_lacks_is_refused_at_the_start(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, {"feature_stages": [3]})
    with pytest.raises(ValueError, match=r"stages must be one or more in \[-3, 2\].*\(3,\)"):
        trainer.run_training()


def test_crops_train_the_encoder_in_three_dimensions(prepared):
    architecture = prepared.plans()["configurations"][TINY]["architecture"]
    architecture["arch_kwargs"].update(
        conv_op="torch.nn.modules.conv.Conv3d",
        norm_op="torch.nn.modules.instancenorm.InstanceNorm3d",
        kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    )
    trainer = make_trainer(
        tiny(trainer_class("cropEmbedding"), 2, 1),
        prepared,
        {"anchors": 16},
        patch_size=[8, 40, 32],
        batch_size=2,
        architecture=architecture,
    )
    assert train(trainer)["loss_contrastive"][-1] > 0


@pytest.mark.parametrize("embedding", ["feature", "crop"])
def test_the_contrastive_loss_reaches_the_student_and_never_the_teacher(prepared, embedding):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, {"embedding": embedding})
    gradients = []

    def contrastive_loss(*arguments):
        loss = type(trainer).contrastive_loss(trainer, *arguments)
        parameters = [next(trainer.student.encoder.parameters()), trainer.head.out.weight]
        gradients.extend(torch.autograd.grad(loss, parameters, retain_graph=True))
        return loss

    trainer.contrastive_loss = contrastive_loss
    trainer.run_training()
    assert all(gradient.abs().sum() > 0 for gradient in gradients[2:])
    assert all(p.grad is None for p in trainer.teacher.parameters())
    assert all(p.grad is None for p in trainer.teacher_head.parameters())


@pytest.mark.parametrize("embedding", ["feature", "crop"])
def test_the_teacher_embeds_with_its_own_encoder_and_head(prepared, embedding):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, {"embedding": embedding})
    trainer.run_training()
    image = torch.randn(2, 1, 48, 48)
    confidence = torch.softmax(torch.randn(2, 4, 48, 48), 1)

    def embeddings():
        with torch.no_grad():
            trainer.network(image)
            student = trainer.seen_by_student(image, image[:0])
            teacher = trainer.seen_by_teacher(image, image[:0], trainer.cutmix(image[:0]))
            trainer.window_generator.manual_seed(0)
            windows = trainer.draw_windows(teacher, confidence)
            return (
                trainer.embed(*student, confidence, windows),
                trainer.teacher_embed(*teacher, confidence, windows),
            )

    of_student, of_teacher = embeddings()
    assert not torch.equal(of_student, of_teacher)
    for module in (trainer.teacher.module.encoder, trainer.teacher_head):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        again_of_student, again_of_teacher = embeddings()
        assert torch.equal(again_of_student, of_student)
        assert not torch.equal(again_of_teacher, of_teacher)
        of_teacher = again_of_teacher


def test_one_class_alone_gives_no_contrast_and_is_said_once(prepared):
    """Labelled images of background, and a warm-up that lasts: nothing to compare with."""
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL_poster), prepared, {"warmup_fraction": 1.0})

    def background(target):
        maps = torch.zeros_like(target[0]).expand(-1, 4, -1, -1).clone().float()
        maps[:, 0] = 1
        return maps

    trainer.label_maps = background
    log = train(trainer)
    assert log["loss_contrastive"] == [0, 0, 0]
    text = Path(trainer.log_file).read_text()
    assert text.count("the contrastive loss is zero") == 1
    assert "Epoch 0, iteration 1: the contrastive loss is zero" in text


def test_lambda_of_the_closed_form_grows_linearly_to_its_end(prepared, monkeypatch):
    seen = []

    def record(*arguments):
        seen.append(arguments[6])
        return arguments[0].sum() * 0

    module = inspect.getmodule(nnUNetTrainerContrast)
    monkeypatch.setattr(module, "closed_form_info_nce", record)
    trainer = make_trainer(tiny(trainer_class("closedForm")), prepared, {"covariance_scale": 3.0})
    trainer.run_training()
    np.testing.assert_allclose(seen, 3 * np.arange(6) / 6)
