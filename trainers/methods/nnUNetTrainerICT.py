from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nnunetv2_plgcl.semisupervised.losses import squared_consistency
from nnunetv2_plgcl.semisupervised.mixing import Mixup
from nnunetv2_plgcl.semisupervised.settings import SSL4MIS, ConsistencySettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class ICTSettings(ConsistencySettings):
    """How unlabelled patches are blended."""

    published: ClassVar[Mapping[str, Any]] = SSL4MIS

    mixup_alpha: float = setting(
        0.2, "alpha of Beta(alpha, alpha), which draws the shares of a blend [paper]",
        0, open_interval=True,
    )  # fmt: skip


class nnUNetTrainerICT(nnUNetTrainerSemiSupervised):
    """Interpolation consistency training (Verma et al., IJCAI 2019).

    Two unlabelled patches are blended, and the student's prediction of the blend is held to the
    blend of the teacher's two predictions, by the mean squared difference. Departure: each
    unlabelled patch is blended with the one before it in the batch, where SSL4MIS, which gives the
    published numbers, blends one half of the batch with the other.

    Raises, before training starts and beyond its parent's:
        ValueError: fewer than two unlabelled patches a batch.
    """

    settings_class = ICTSettings
    config: ICTSettings
    strong_views = 0

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images).weak
        blend = Mixup(unlabelled, self.config.mixup_alpha)
        with self.autocast():
            # 1. the teacher's predictions, blended as the patches are
            pseudo_label = blend(self.pseudo_label(unlabelled))
            # 2. the student's prediction of the blended patches agrees
            logits = self.student_logits(torch.cat((images, blend(unlabelled))))
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

    def initialize(self) -> None:
        super().initialize()
        self.require_two_unlabelled("ICT blends unlabelled patches with one another")
