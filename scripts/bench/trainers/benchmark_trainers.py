"""Trainers of the benchmark, found by nnU-Net through nnUNet_extTrainer.

NAME_benchmark is the trainer NAME, wherever nnU-Net finds it, PLGCL_BENCHMARK_ITERATIONS long, with
a short online validation after each epoch (a curve to look at, no decision follows from it). On a
CPU that multiplies bfloat16 (AMX, AVX-512 BF16) it trains in mixed precision, as nnU-Net does on a
GPU, in half the time; losses and validation are computed in float32. On others bfloat16 gains
nothing, so all of it is float32.
"""

import os
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor, nn

SUFFIX = "_benchmark"
# nnU-Net lowers the learning rate by epoch: few epochs would end far from zero. The last of 50 has
# 3 % of the first.
EPOCHS = 50
CPU_SECONDS = "cpu_seconds"  # of the training iterations of each epoch; in the log
COMMIT = runpy.run_path(str(Path(__file__).parents[2] / "commit.py"))["commit"]
HAS_BFLOAT16 = any(
    getattr(torch.cpu, supported, bool)()  # old PyTorch cannot tell
    for supported in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
)


def _in_float32(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward pass of a loss, which stays what it is for who asks for its parts."""

    def computed(output: Tensor | list[Tensor], *others: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            if isinstance(output, Tensor):
                return forward(output.float(), *others)
            return forward([x.float() for x in output], *others)

    return computed


class _MixedPrecision(nnUNetTrainer):
    """Mixed precision on a CPU too. To be inherited beside a trainer."""

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        able = self.device.type == "cpu" and HAS_BFLOAT16
        return torch.autocast("cpu", torch.bfloat16, enabled and able)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        if self.device.type == "cpu" and HAS_BFLOAT16:
            loss.forward = _in_float32(loss.forward)
        return loss

    def train_step(self, batch: dict) -> dict:
        with self._autocast():
            return super().train_step(batch)

    def optimise(self, *losses: Tensor) -> None:  # of the semi-supervised trainers
        with self._autocast(False):
            super().optimise(*losses)  # type: ignore[misc]

    def _label_volumes(self, folder: Path) -> None:  # of those with pseudo-labels of volumes
        with self._autocast():
            super()._label_volumes(folder)  # type: ignore[misc]


class _Timed(nnUNetTrainer):
    """Logs the processor's time beside the clock's, which other processes lengthen."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._started = time.process_time()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        seconds = time.process_time() - self._started
        self.logger.local_logger.log(CPU_SECONDS, seconds, self.current_epoch)
        super().on_train_epoch_end(train_outputs)


def _benchmark(trainer: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super(type_, self).__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = int(os.environ["PLGCL_BENCHMARK_ITERATIONS"]) // EPOCHS
        self.num_epochs = EPOCHS
        self.num_val_iterations_per_epoch = 5
        self.save_every = 5
        self.commit = COMMIT()  # into debug.json
        self.logger.local_logger.my_fantastic_logging[CPU_SECONDS] = []
        draw = self.logger.plot_progress_png  # takes as long as some iterations: once, at the end
        self.logger.plot_progress_png = lambda folder: (
            draw(folder) if self.current_epoch == EPOCHS - 1 else None
        )
        if device.type == "cpu" and "OMP_NUM_THREADS" in os.environ:  # nnU-Net takes all cores
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    name, bases = f"{trainer.__name__}{SUFFIX}", (_Timed, _MixedPrecision, trainer)
    type_ = type(name, bases, {"__init__": __init__})
    return type_


def __getattr__(name: str) -> type[nnUNetTrainer]:
    """NAME_benchmark, made when nnU-Net looks for it."""
    if not name.endswith(SUFFIX):
        raise AttributeError(name)
    try:
        trainer = recursive_find_trainer_class_by_name(name.removesuffix(SUFFIX))
    except RuntimeError:  # nnU-Net looks on, and says that there is none
        raise AttributeError(name) from None
    globals()[name] = made = _benchmark(trainer)
    return made
