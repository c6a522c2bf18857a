from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nnunetv2_plgcl.semisupervised.losses import squared_consistency
from nnunetv2_plgcl.semisupervised.settings import ConsistencySettings, StrongViewSettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised


@dataclass(frozen=True)
class TCSMSettings(ConsistencySettings, StrongViewSettings):
    """Those of consistency and of the strong view, no others."""

    published: ClassVar[Mapping[str, Any]] = {
        "consistency_rampup_fraction": 1.0,
        "warmup_fraction": 0.0,
        "deployed_weights": "student",
    }


class nnUNetTrainerTCSM(nnUNetTrainerSemiSupervised):
    """Transformation-consistent self-ensembling (Li et al., BMVC 2018; TNNLS 2021).

    The teacher sees a rotated and flipped copy of the patch, its prediction is turned back, and the
    student's prediction of the patch is held to it by the mean squared difference: segmentation
    should turn with the image. Departures: unlabelled patches only, where the paper holds labelled
    ones to it too; the noise of both sides is our strong view, on the student's; turns are those
    that leave voxels on the grid, without scaling. In a public mirror of the code both passes run
    without gradient, so its consistency trains nothing; not repeated.
    """

    settings_class = TCSMSettings
    config: TCSMSettings

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        turn = self.spatial_view(weak)
        with self.autocast():
            # 1. the teacher's prediction of a turned copy, turned back
            pseudo_label = turn.undo(self.pseudo_label(turn(weak)))
            # 2. the student agrees with it
            logits = self.student_logits(torch.cat((images, strong)))
            prediction = class_probabilities(logits[0][len(images) :], self.exclusive)
            consistency = squared_consistency(prediction, pseudo_label)
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
