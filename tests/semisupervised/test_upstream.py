"""Lines that had to be repeated from nnU-Net, and traits of nnU-Net that the code relies on.
A failure here means that nnU-Net changed: look at the new version, then adapt."""

import inspect
import re
import textwrap

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised


def test_optimise_repeats_the_end_of_nnunets_train_step():
    upstream = textwrap.dedent(inspect.getsource(nnUNetTrainer.train_step))
    ours = textwrap.dedent(inspect.getsource(nnUNetTrainerSemiSupervised.optimise))
    step = upstream[upstream.index("    if self.grad_scaler") : upstream.index("    return")]
    ours_step = ours[ours.index("    if self.grad_scaler") :]
    ours_step = re.sub(r".*gradient_norms.*\n|norm = ", "", ours_step)
    assert re.sub(r"\bl\b", "loss", step).split() == ours_step.split()
    zero_grad = "self.optimizer.zero_grad(set_to_none=True)"
    assert zero_grad in upstream and zero_grad in ours


def test_the_optimiser_loop_of_nnunet_sets_the_learning_rate_of_every_group():
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimiser = torch.optim.SGD(groups, 0.1)
    PolyLRScheduler(optimiser, 0.1, 10).step(5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.1 * 0.5**0.9] * 2


def test_training_calls_the_hooks_in_the_expected_order():
    source = inspect.getsource(nnUNetTrainer.run_training)
    names = ["on_train_start", "on_train_epoch_start", "train_step", "on_train_epoch_end",
             "validation_step", "on_epoch_end", "on_train_end"]  # fmt: skip
    places = [source.index(f"self.{name}(") for name in names]
    assert places == sorted(places)


def test_epoch_end_writes_latest_before_best():
    source = inspect.getsource(nnUNetTrainer.on_epoch_end)
    assert source.index("checkpoint_latest.pth") < source.index("checkpoint_best.pth")
