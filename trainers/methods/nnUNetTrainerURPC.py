from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_plgcl.semisupervised.settings import SSL4MIS, ConsistencySettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class URPCSettings(ConsistencySettings):
    """Which outputs of the network have to agree."""

    published: ClassVar[Mapping[str, Any]] = SSL4MIS

    scales: int = setting(
        4, "finest outputs that must agree, as far as deep supervision trains them [paper]", 2
    )


class nnUNetTrainerURPC(nnUNetTrainerSemiSupervised):
    """Uncertainty-rectified pyramid consistency (Luo et al., MICCAI 2021; MedIA 2022).

    The network's outputs at several resolutions, brought to the full one, are held to their mean;
    a voxel where an output diverges from it weighs less, and the divergence itself is minimised.
    One pass, no teacher: the EMA weights are there to be deployed. The outputs are those of
    nnU-Net's deep supervision, with its weights in the supervised loss, but for the lowest, which
    nnU-Net does not train. Departure: no dropout or noise before the auxiliary outputs.

    Raises, before training starts and beyond its parent's:
        NotImplementedError: fewer than two trained outputs.
    """

    settings_class = URPCSettings
    config: URPCSettings
    strong_views = 0

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images).weak
        with self.autocast():
            # 1. outputs of all resolutions, from one pass
            logits = self.student_logits(torch.cat((images, unlabelled)))
            # 2. those of unlabelled patches agree
            pyramid = [x[len(images) :] for x in logits[: self.scales]]
            consistency = pyramid_consistency(pyramid, self.exclusive)
            finest = class_probabilities(pyramid[0].detach(), self.exclusive)
            # 3. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            beta = self.config.consistency_weight * self.consistency_rampup
            loss = supervised + beta * consistency
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=finest,
            loss=loss,
            loss_supervised=supervised,
            loss_consistency=consistency,
        )

    def initialize(self) -> None:
        super().initialize()
        trained = len(self._get_deep_supervision_scales() or [1, 0]) - 1
        self.scales = min(self.config.scales, trained)
        if self.scales < 2:
            raise NotImplementedError(
                f"URPC holds the outputs of deep supervision together, but configuration "
                f"{self.configuration_name} trains only {trained} (the lowest resolution counts "
                f"not). Use a network of four stages or more, with deep supervision, or another "
                f"method."
            )


def pyramid_consistency(logits: Sequence[Tensor], exclusive: bool) -> Tensor:
    """Uncertainty-rectified consistency of the outputs of one network, in float32.

    Args:
        logits: (B, K, *s), one a resolution, the finest first.
        exclusive: classes exclude one another (softmax); otherwise regions (sigmoid).

    Returns:
        scalar, the mean over the resolutions; zero for an empty batch.
    """
    if len(logits[0]) == 0:
        return torch.stack([x.float().sum() for x in logits]).sum()
    size = logits[0].shape[2:]
    same_size = [F.interpolate(x.float(), size, mode="nearest") for x in logits]
    if not exclusive:  # a region and the rest exclude one another
        same_size = [torch.stack((x, torch.zeros_like(x)), 1) for x in same_size]
    log_each = [x.log_softmax(1) for x in same_size]
    mean = torch.stack(log_each).exp().mean(0)
    losses = []
    for log_one in log_each:
        divergence = (torch.xlogy(mean, mean) - mean * log_one).sum(1, True)
        weight = torch.exp(-divergence)
        squared = (mean - log_one.exp()) ** 2
        losses.append((squared * weight).mean() / weight.mean() + divergence.mean())
    return torch.stack(losses).mean()
