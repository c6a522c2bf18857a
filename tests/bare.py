"""A trainer without data: what nnU-Net builds loss, network and optimiser from."""

from __future__ import annotations

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_plgcl.semisupervised.step import SemiSupervisedStep

LABELS = {"background": 0, "a": 1, "b": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def architecture(axes: int) -> dict:
    """Four stages, hence three resolutions of deep supervision."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": [4, 6, 8, 10],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * 4,
            "strides": [[1] * axes, [2] * axes, [2] * axes, [2] * axes],
            "n_conv_per_stage": 1,
            "n_conv_per_stage_decoder": 1,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"affine": True},
            "nonlin": "torch.nn.LeakyReLU",
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }


def bare_trainer(
    exclusive: bool,
    ignore: bool = False,
    batch_dice: bool = True,
    axes: int = 2,
    deep_supervision: bool = True,
) -> SemiSupervisedStep:
    """Three classes, or two regions, with or without an ignore label; three resolutions."""
    labels = dict(LABELS if exclusive else REGIONS)
    if ignore:
        labels["ignore"] = 3
    configuration = {"batch_dice": batch_dice, "architecture": architecture(axes)}
    trainer = object.__new__(SemiSupervisedStep)
    trainer.plans_manager = PlansManager(
        {"label_manager": "LabelManager", "configurations": {"tiny": configuration}}
    )
    trainer.configuration_manager = trainer.plans_manager.get_configuration("tiny")
    trainer.dataset_json = {"labels": labels, "regions_class_order": [1, 2]}
    trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
    trainer.device = torch.device("cpu")
    trainer.is_ddp = False
    trainer.gradient_norms = []
    trainer.grad_scaler = None
    trainer.num_input_channels = 1
    trainer.initial_lr, trainer.weight_decay, trainer.num_epochs = 1e-2, 3e-5, 10
    trainer.enable_deep_supervision = deep_supervision
    trainer.loss = trainer._build_loss()
    return trainer


def small_unet(axes: int, deep_supervision: bool = True, residual: bool = False) -> nn.Module:
    """nnU-Net's network of that architecture, one input channel and three classes."""
    of_plans = architecture(axes)
    name, arguments = of_plans["network_class_name"], of_plans["arch_kwargs"]
    if residual:
        name = name.replace("PlainConvUNet", "ResidualEncoderUNet")
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    return get_network_from_plans(
        name, arguments, of_plans["_kw_requires_import"], 1, 3, True, deep_supervision
    )
