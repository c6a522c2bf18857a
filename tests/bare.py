"""A trainer of nnU-Net without data: what its ``_build_loss`` needs, and no more."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

LABELS = {"background": 0, "a": 1, "b": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def bare_trainer(
    exclusive: bool,
    ignore: bool = False,
    batch_dice: bool = True,
    axes: int = 2,
    deep_supervision: bool = True,
) -> nnUNetTrainer:
    """Three classes, or two regions, with or without an ignore label; three resolutions."""
    labels = dict(LABELS if exclusive else REGIONS)
    if ignore:
        labels["ignore"] = 3
    strides = [[1] * axes, [2] * axes, [2] * axes, [2] * axes]
    configuration = {
        "batch_dice": batch_dice,
        "architecture": {"arch_kwargs": {"strides": strides}},
    }
    trainer = object.__new__(nnUNetTrainer)
    trainer.plans_manager = PlansManager(
        {"label_manager": "LabelManager", "configurations": {"tiny": configuration}}
    )
    trainer.configuration_manager = trainer.plans_manager.get_configuration("tiny")
    trainer.dataset_json = {"labels": labels, "regions_class_order": [1, 2]}
    trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
    trainer.device = torch.device("cpu")
    trainer.is_ddp = False
    trainer.enable_deep_supervision = deep_supervision
    trainer.loss = trainer._build_loss()
    return trainer
