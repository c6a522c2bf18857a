"""Trainers of the benchmarks, found by nnU-Net through nnUNet_extTrainer.

NAME_benchmark is the trainer NAME, PLGCL_BENCHMARK_ITERATIONS long, with a short online validation
after each epoch (a curve to look at, no decision follows from it). On a CPU with AMX it trains in
mixed precision (bfloat16), as nnU-Net does on a GPU, in half the time; losses and validation are
computed in float32. Without AMX bfloat16 gains nothing, so all of it is float32.
"""

import importlib
import os
import pkgutil

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunetv2_plgcl import trainers

ITERATIONS = int(os.environ["PLGCL_BENCHMARK_ITERATIONS"])
# nnU-Net lowers the learning rate by epoch: few epochs would end far from zero. The last of 50 has
# 3 % of the first.
EPOCHS = 50
HAS_AMX = getattr(torch.cpu, "_is_amx_tile_supported", bool)()  # old PyTorch cannot tell


class _InFloat32(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            if isinstance(output, Tensor):
                return self.loss(output.float(), target)
            return self.loss([x.float() for x in output], target)


class _MixedPrecision(nnUNetTrainer):
    """Mixed precision on a CPU with AMX too. To be inherited beside a trainer."""

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        able = self.device.type == "cpu" and HAS_AMX
        return torch.autocast("cpu", torch.bfloat16, enabled and able)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        return _InFloat32(loss) if self.device.type == "cpu" else loss

    def train_step(self, batch: dict) -> dict:
        with self._autocast():
            return super().train_step(batch)

    def optimise(self, loss: Tensor) -> None:  # of the semi-supervised trainers
        with self._autocast(False):
            super().optimise(loss)  # type: ignore[misc]


def _benchmark(trainer: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super(type_, self).__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = ITERATIONS // EPOCHS
        self.num_epochs = EPOCHS
        self.num_val_iterations_per_epoch = 5
        self.save_every = 5
        self.commit = os.environ.get("PLGCL_BENCHMARK_COMMIT", "unknown")  # into debug.json
        if device.type == "cpu" and "OMP_NUM_THREADS" in os.environ:  # nnU-Net takes all cores
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    name, bases = f"{trainer.__name__}_benchmark", (_MixedPrecision, trainer)
    type_ = type(name, bases, {"__init__": __init__})
    return type_


_all = [nnUNetTrainer]
for _module in pkgutil.iter_modules(trainers.__path__):
    _all.append(
        getattr(importlib.import_module(f"{trainers.__name__}.{_module.name}"), _module.name)
    )
globals().update({f"{_trainer.__name__}_benchmark": _benchmark(_trainer) for _trainer in _all})
