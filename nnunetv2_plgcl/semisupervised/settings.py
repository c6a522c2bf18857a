"""Settings that semi-supervised trainers share. A method's own stand above its trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_plgcl.settings import Settings, setting

# What the methods in the public library SSL4MIS share (at its commit 06df604), as written there.
# The weight reaches its value at the last iteration. Its supervised loss is half of Dice plus
# cross-entropy, nnU-Net's their sum, so here the weight counts half as much.
SSL4MIS: Mapping[str, Any] = {
    "consistency_weight": 0.1,
    "consistency_rampup_fraction": 1.0,
    "warmup_fraction": 0.0,
    "ema_decay": 0.99,
    "deployed_weights": "student",
}


@dataclass(frozen=True)
class SemiSupervisedSettings(Settings):
    """Stages, batch and teacher: what every method has."""

    labelled_fraction: float = setting(
        0.5,
        "share of labelled patches in a batch of the second stage [ours]",
        0,
        1,
        open_interval=True,
    )
    warmup_fraction: float = setting(
        1 / 3, "share of all epochs trained on labelled cases alone [authors' code]", 0, 1
    )
    ema_decay: float = setting(
        0.999, "EMA decay of the teacher per iteration, ramped up [authors' code]", 0, 1
    )
    deployed_weights: str = setting(
        "teacher",
        "weights that are validated and stored as network_weights [ours]",
        choices=("teacher", "student"),
    )


@dataclass(frozen=True)
class ConsistencySettings(SemiSupervisedSettings):
    """Of methods that add a weighted loss of the unlabelled patches to the supervised one."""

    consistency_weight: float = setting(
        1.0, "beta, weight of the consistency loss after its ramp-up [ours]", 0
    )
    consistency_rampup_fraction: float = setting(
        0.25, "share of the second stage over which beta ramps up [ours]", 0, 1
    )


@dataclass(frozen=True)
class StrongViewSettings(SemiSupervisedSettings):
    """Of methods whose student sees strong views."""

    cutout_probability: float = setting(
        0.5, "share of strong views with rectangles blanked [ours]", 0, 1
    )
