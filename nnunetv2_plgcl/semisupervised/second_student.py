"""A second student beside the trainer's network, for methods in which two networks teach each
other."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_plgcl.semisupervised.step import SemiSupervisedStep


class SecondStudent:
    """A network of the same architecture and other initial weights, with an optimiser, a learning
    rate and a gradient scaler of its own. Never deployed. Source: CPS (Chen et al., 2021).

    Built as nnU-Net builds the trainer's network, optimiser and scaler, by the trainer's own
    methods, compiled and wrapped for DDP likewise; ``student_logits``, ``backward`` and
    ``take_step`` are the trainer's, on this network. Initial weights are drawn from torch's
    generator after those of the first network, and pretrained weights are not loaded: the two must
    not start alike. Where the gradient of either is not finite, neither takes the step.

    Args:
        trainer: initialised.
    """

    def __init__(self, trainer: SemiSupervisedStep) -> None:
        network: nn.Module = trainer.build_network_architecture(
            trainer.plans_manager,
            trainer.configuration_manager,
            trainer.num_input_channels,
            trainer.label_manager.num_segmentation_heads,
            trainer.enable_deep_supervision,
        ).to(trainer.device)
        network = trainer.compiled(network)
        twin = copy.copy(trainer)
        twin.network = network
        self.optimizer, self.lr_scheduler = twin.configure_optimizers()
        if trainer.is_ddp:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            network = DistributedDataParallel(network)
        self.network = network
        self.gradient_norms = trainer.gradient_norms  # of both
        self.grad_scaler = None if trainer.grad_scaler is None else torch.amp.GradScaler("cuda")

    # the trainer's own, on this object's network, optimizer and grad_scaler
    student: Any = SemiSupervisedStep.student
    student_logits: Any = SemiSupervisedStep.student_logits
    backward: Any = SemiSupervisedStep.backward
    take_step: Any = SemiSupervisedStep.take_step

    def on_train_epoch_start(self, epoch: int) -> None:
        """Train mode and learning rate of this epoch, as nnU-Net sets them for its network."""
        self.network.train()
        self.lr_scheduler.step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs; the learning rate follows from the epoch."""
        scaler = self.grad_scaler
        return {
            "network": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``; of a scaler that only one side has, nothing is taken over."""
        self.student.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.grad_scaler is not None and state["grad_scaler"] is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
