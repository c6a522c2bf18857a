"""Trainers of the benchmarks, found by nnU-Net through nnUNet_extTrainer.

NAME_benchmark is the trainer NAME, PLGCL_BENCHMARK_ITERATIONS long, with a short online validation
after each epoch (a curve to look at, no decision follows from it).
"""

import importlib
import os
import pkgutil

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_plgcl import trainers

ITERATIONS = int(os.environ["PLGCL_BENCHMARK_ITERATIONS"])
EPOCH = 100 if ITERATIONS < 10_000 else 500  # iterations


def _benchmark(trainer: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    def __init__(self, plans, configuration, fold, dataset_json, device):
        trainer.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = EPOCH
        self.num_epochs = ITERATIONS // EPOCH
        self.num_val_iterations_per_epoch = 5
        self.save_every = 5

    return type(f"{trainer.__name__}_benchmark", (trainer,), {"__init__": __init__})


_all = [nnUNetTrainer]
for _module in pkgutil.iter_modules(trainers.__path__):
    _all.append(
        getattr(importlib.import_module(f"{trainers.__name__}.{_module.name}"), _module.name)
    )
globals().update({f"{_trainer.__name__}_benchmark": _benchmark(_trainer) for _trainer in _all})
