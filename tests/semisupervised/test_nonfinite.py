"""A value that is not finite never reaches the weights or a checkpoint, and its case is named."""

from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from training import assert_equal_to_the_bit, make_trainer, tiny

from nnunetv2_plgcl.semisupervised import log as series
from nnunetv2_plgcl.semisupervised.nonfinite import SkippedSteps
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def with_gradient_of_nan(loss, of):
    """The same loss, whose gradient is infinity times zero."""
    return loss + torch.sqrt((of * 0).sum())


def latest(trainer) -> dict:
    return torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)


def assert_finite(weights: dict) -> None:
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize("part", ["network", "head"])
def test_a_gradient_of_nan_stops_before_the_step(prepared, part):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    before, batches = {}, []

    def optimise(loss):
        before.update({k: v.clone() for k, v in trainer.student.state_dict().items()})
        before.update({k: v.clone() for k, v in trainer.head.state_dict().items()})
        if trainer.current_epoch == 1:
            module = trainer.student if part == "network" else trainer.head
            loss = with_gradient_of_nan(loss, next(module.parameters()))
            assert torch.isfinite(loss)
        type(trainer).optimise(trainer, loss)

    def labelled_batch(batch):
        batches.append(batch["keys"])
        return type(trainer).labelled_batch(trainer, batch)

    trainer.optimise, trainer.labelled_batch = optimise, labelled_batch
    with pytest.raises(RuntimeError, match="epoch 1, iteration 1.*norm of the gradient nan") as e:
        trainer.run_training()
    assert all(case in str(e.value) for case in batches[-1])
    assert any(case in str(e.value) for case in prepared.split["unlabelled"])
    after = {**trainer.student.state_dict(), **trainer.head.state_dict()}
    assert_equal_to_the_bit(dict(after), before)
    assert latest(trainer)["current_epoch"] == 1
    assert_finite(latest(trainer)["network_weights"])
    log = Path(trainer.log_file).read_text()
    assert "RuntimeError: The loss or its gradient is not finite in epoch 1" in log
    assert "checkpoint_latest.pth holds the beginning of epoch 1: --c goes on from there" in log

    continued = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    continued.load_checkpoint(f"{continued.output_folder}/checkpoint_latest.pth")
    continued.run_training()
    assert_finite(continued.student.state_dict())


def test_of_two_networks_neither_steps_where_one_gradient_is_not_finite(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerCPS), prepared)
    before = {}

    def backward(loss):
        both = {"first": trainer.student, "second": trainer.second.student}
        weights = {f"{n}.{k}": v for n, net in both.items() for k, v in net.state_dict().items()}
        before.update({name: value.clone() for name, value in weights.items()})
        if trainer.current_epoch == 1:
            loss = with_gradient_of_nan(loss, next(trainer.second.student.parameters()))
        type(trainer).backward(trainer.second, loss)

    trainer.initialize()
    trainer.second.backward = backward
    with pytest.raises(RuntimeError, match="epoch 1, iteration 1.*norm of the gradient nan"):
        trainer.run_training()
    for name, network in (("first", trainer.student), ("second", trainer.second.student)):
        after = {f"{name}.{key}": value for key, value in network.state_dict().items()}
        assert_equal_to_the_bit(after, {key: before[key] for key in after})


@pytest.mark.parametrize("bad", [0, 1])
def test_with_mixed_precision_too_neither_steps_and_one_scale_falls(prepared, bad):
    trainer = make_trainer(tiny(nnUNetTrainerCPS), prepared)
    trainer.initialize()
    both = (trainer, trainer.second)
    before = []
    for network in both:
        network.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before.append({k: v.clone() for k, v in network.student.state_dict().items()})
    parameters = [next(network.student.parameters()) for network in both]
    losses = [sum(p.square().sum() for p in n.student.parameters()) for n in both]
    losses[bad] = with_gradient_of_nan(losses[bad], parameters[bad])
    trainer.optimise(*losses)
    for network, weights in zip(both, before, strict=True):
        assert_equal_to_the_bit(dict(network.student.state_dict()), weights)
    scales = [network.grad_scaler.get_scale() for network in both]
    assert scales[bad] == 4 and scales[1 - bad] == 8
    trainer.gradient_norms.clear()
    trainer.optimise(*(sum(p.square().sum() for p in n.student.parameters()) for n in both))
    for parameter, weights in zip(parameters, before, strict=True):
        assert not torch.equal(parameter, next(iter(weights.values())))


def test_both_scalers_are_watched(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerCPS), prepared)
    trainer.initialize()
    assert trainer.gradient_scalers == []
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.second.grad_scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    trainer.skipped_steps.skipped(["a"])
    assert trainer.skipped_steps.too_many(trainer.gradient_scalers)


def test_a_checkpoint_is_never_replaced_by_one_that_is_not_finite(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    trainer.on_train_start()
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(file)
    with torch.no_grad():
        trainer.head.out.bias[0] = float("inf")
    with pytest.raises(RuntimeError, match=r"was not written, as plgcl\.head\.out\.bias is not"):
        trainer.save_checkpoint(file)
    assert_finite(latest(trainer)["plgcl"]["head"])


def poison(prepared, case: str) -> None:
    """One voxel in ten of the preprocessed image becomes NaN."""
    file = prepared.case_folder / f"{case}.b2nd"
    image = blosc2.open(str(file), mode="r")[:]
    image.reshape(-1)[::10] = np.nan
    blosc2.asarray(image, urlpath=str(file), mode="w")


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerMeanTeacher, nnUNetTrainerPLGCL])
def test_with_mixed_precision_a_bad_case_is_counted_named_and_ends_the_training(
    prepared, trainer_class
):
    case = prepared.split["unlabelled"][2]
    poison(prepared, case)
    trainer = make_trainer(tiny(trainer_class, 40, 4), prepared, {"warmup_fraction": 0.0})
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with pytest.raises(RuntimeError, match=rf"most batches of skipped steps: {case} \(4 of 4\)"):
        trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging[series.SKIPPED]
    text = Path(trainer.log_file).read_text()
    assert sum(log) <= 4 and set(log) <= {0, 1, 2, 3, 4}
    assert text.count("of 4 steps were skipped") == sum(number > 0 for number in log) > 0
    assert_finite(trainer.student.state_dict())
    assert_finite(latest(trainer)["network_weights"])


def test_skipped_steps_while_the_scaler_finds_its_scale_are_no_concern():
    scaler, steps = torch.amp.GradScaler("cpu"), SkippedSteps()
    for _ in range(3):
        steps.skipped(["a", "b", "b"])
        assert not steps.too_many([scaler])
    steps.taken()
    steps.skipped(["a"])
    assert steps.suspects() == "a (4 of 4), b (3 of 4)"
    small = torch.amp.GradScaler("cpu", init_scale=0.5)
    assert steps.too_many([small]) and steps.too_many([scaler, small]) and steps.too_many([])
    steps.taken()
    assert not steps.too_many([small]) and not steps.too_many([])
