"""Short trainings for tests."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch
from conftest import TINY, Prepared


def tiny(trainer_class: type, epochs: int = 3, iterations: int = 2, picture: bool = False) -> type:
    """The same trainer with a few short epochs, one validation iteration and a checkpoint each.

    Drawing progress.png takes longer than such an epoch, so it is left out unless asked for.
    """

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        trainer_class.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs = epochs
        self.num_iterations_per_epoch = iterations
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1
        if not picture:
            self.logger.plot_progress_png = lambda folder: None

    return type(trainer_class.__name__, (trainer_class,), {"__init__": __init__})


def make_trainer(
    trainer_class: type,
    prepared: Prepared,
    plgcl: dict | None = None,
    fold: int | str = 0,
    **configuration: object,
):
    """Instantiate as nnUNetv2_train does, with changes to the tiny configuration."""
    plans = prepared.plans()
    plans["configurations"][TINY].update(configuration)
    if plgcl is not None:
        plans["configurations"][TINY]["plgcl"] = plgcl
    plans["continue_training"] = False
    return trainer_class(plans, TINY, fold, prepared.dataset_json(), torch.device("cpu"))


def keep_latest(trainer, epoch: int, file: Path) -> None:
    """Copy the latest checkpoint of a training that is to run, when this epoch begins."""

    def on_epoch_start():
        type(trainer).on_epoch_start(trainer)
        if trainer.current_epoch == epoch:
            shutil.copy(Path(trainer.output_folder) / "checkpoint_latest.pth", file)

    trainer.on_epoch_start = on_epoch_start


EXT_TRAINERS = Path(__file__).parent / "ext_trainers"


def nnunet_command(name: str, *arguments: object) -> list[str]:
    """A console script of nnU-Net, or of ours, as installed beside this interpreter."""
    return [str(Path(sys.executable).parent / name), *map(str, arguments)]


def command_environment(prepared: Prepared) -> dict[str, str]:
    """Environment for commands on the prepared dataset; finds the tiny trainers too."""
    # waiting threads must not spin where other processes want the cores
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}
    ours = {**prepared.environment(), "nnUNet_extTrainer": str(EXT_TRAINERS)}
    return {**os.environ, **passive, **ours}


def assert_equal_to_the_bit(a: object, b: object, where: str = "checkpoint") -> None:
    """Compare nested dicts and lists of tensors and plain values exactly."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where} differs"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal_to_the_bit(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_to_the_bit(x, y, f"{where}[{index}]")
    else:
        assert a == b, f"{where}: {a} != {b}"
