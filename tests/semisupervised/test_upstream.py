"""Lines that had to be repeated from nnU-Net, and traits of nnU-Net that the code relies on.
A failure here means that nnU-Net changed: look at the new version, then adapt."""

import ast
import inspect
import re
import textwrap

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised


def test_optimise_repeats_the_end_of_nnunets_train_step():
    ours = nnUNetTrainerSemiSupervised
    for with_scaler in (True, False):
        upstream = statements(nnUNetTrainer.train_step, with_scaler)
        zero_grad = "self.optimizer.zero_grad(set_to_none=True)"
        after_forward = [
            s for s in upstream if re.match(r"self\.grad_scaler|torch\.nn|l\.|self\.opt", s)
        ]
        assert zero_grad in upstream and after_forward[0] == zero_grad
        repeated = statements(ours.backward, with_scaler) + statements(ours.take_step, with_scaler)
        repeated = [s.removeprefix("norm = ") for s in repeated if "gradient_norms" not in s]
        assert [re.sub(r"\bl\b", "loss", s) for s in after_forward] == repeated


def statements(function, with_scaler: bool) -> list[str]:
    """Those that run with or without a gradient scaler, where all gradients are finite."""
    taken = []

    def walk(body):
        for node in body:
            if isinstance(node, ast.If):
                of_scaler = ast.unparse(node.test) == "self.grad_scaler is not None"
                walk(node.body if not of_scaler or with_scaler else node.orelse)
            elif not isinstance(getattr(node, "value", None), ast.Constant):  # a docstring
                taken.append(ast.unparse(node))

    walk(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body)
    return taken


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
