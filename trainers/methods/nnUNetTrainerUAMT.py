from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_plgcl.semisupervised.losses import sigmoid_rampup, squared_consistency
from nnunetv2_plgcl.semisupervised.settings import SSL4MIS, ConsistencySettings, StrongViewSettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities, normalised_entropy
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting

LARGEST_NOISE = 2  # standard deviations (paper)


@dataclass(frozen=True)
class UAMTSettings(ConsistencySettings, StrongViewSettings):
    """How the teacher's uncertainty is measured, and how much of it is allowed."""

    published: ClassVar[Mapping[str, Any]] = {**SSL4MIS, "teacher_passes": 8}

    teacher_passes: int = setting(
        4, "turned and noisy copies that the teacher predicts [ours; paper: 8 with dropout]", 2
    )
    noise: float = setting(0.1, "standard deviation of the noise on each copy [paper]", 0)
    entropy_threshold: float = setting(
        0.75,
        "share of the highest entropy from which on voxels take no part; grows to 1 [paper]",
        0,
        1,
    )


class nnUNetTrainerUAMT(nnUNetTrainerSemiSupervised):
    """Uncertainty-aware mean teacher (Yu et al., MICCAI 2019).

    The teacher predicts several noisy copies of a patch. Where the entropy of their mean is low,
    the student is held to it by the mean squared difference; the allowed entropy grows to its
    maximum, so in the end every voxel takes part. Departures: nnU-Net has no dropout, so the copies
    are rotated and flipped beside their noise, and their predictions turned back; their mean is
    also the target, which saves a pass; the student sees our strong view. The public code measures
    entropy against the maximum of two classes and divides by two for any number; here the maximum
    is that of the classes there are, and the mean is one.
    """

    settings_class = UAMTSettings
    config: UAMTSettings

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        with self.autocast():
            # 1. the teacher's mean prediction of several copies
            pseudo_label = self.mean_of_copies(weak)
            # 2. where it is sure, the student agrees with it
            sure = normalised_entropy(pseudo_label, self.exclusive) < self.allowed_entropy
            logits = self.student_logits(torch.cat((images, strong)))
            prediction = class_probabilities(logits[0][len(images) :], self.exclusive)
            consistency = squared_consistency(prediction, pseudo_label, sure)
            # 3. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            beta = self.config.consistency_weight * self.consistency_rampup
            loss = supervised + beta * consistency
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=pseudo_label,
            loss=loss,
            loss_supervised=supervised,
            loss_consistency=consistency,
        )

    def mean_of_copies(self, weak: Tensor) -> Tensor:
        """Mean of the teacher's probabilities (B, K, *spatial) over noisy, turned copies of
        (B, C, *spatial)."""
        predictions = []
        for _ in range(self.config.teacher_passes):
            turn = self.spatial_view(weak)
            noise = torch.randn_like(weak).clamp(-LARGEST_NOISE, LARGEST_NOISE)
            noise[:, self.image_channels :] = 0
            for channel in self.masked_channels:
                noise[:, channel][weak[:, channel] == 0] = 0
            copy = turn(weak + self.config.noise * noise)
            predictions.append(turn.undo(self.pseudo_label(copy)))
        return torch.stack(predictions).mean(0)

    @property
    def allowed_entropy(self) -> float:
        """Share of the highest entropy below which a voxel takes part, at this iteration."""
        low = self.config.entropy_threshold
        return low + (1 - low) * sigmoid_rampup(self.training_progress)
