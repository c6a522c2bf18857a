from dataclasses import dataclass

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor

from nnunetv2_plgcl.semisupervised.losses import consistency_loss
from nnunetv2_plgcl.semisupervised.mixing import CutMix
from nnunetv2_plgcl.semisupervised.settings import ConsistencySettings, StrongViewSettings
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class MeanTeacherSettings(ConsistencySettings, StrongViewSettings):
    """How the strong view is held to the teacher's pseudo-label."""

    consistency_target: str = setting(
        "soft",
        "teacher's probabilities, or their arg max, as the target of consistency [poster: silent]",
        choices=("soft", "hard"),
    )
    consistency_loss: str = setting(
        "cross_entropy",
        "cross-entropy alone [poster], or with soft Dice as in nnU-Net's supervised loss [ours]",
        choices=("cross_entropy", "dice_cross_entropy"),
    )
    confidence_threshold: float = setting(
        0.0, "voxels where the teacher is less sure take no part in consistency [ours]", 0, 1
    )
    cutmix_probability: float = setting(
        0.0, "share of unlabelled patches with a box pasted from another one [ours]", 0, 1
    )


class nnUNetTrainerMeanTeacher(nnUNetTrainerSemiSupervised):
    """PLGCL without the contrastive part: poster steps 1, 4, 5 and 6, the yardstick for it.

    Like Mean Teacher (Tarvainen & Valpola, 2017), with a weak and a strong view as in the poster.
    """

    settings_class = MeanTeacherSettings
    config: MeanTeacherSettings

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        mix = self.cutmix(strong)
        with self.autocast():
            # 1. the teacher's pseudo-labels of the weak view
            pseudo_label = mix(self.pseudo_label(weak))
            logits = self.student_logits(torch.cat((images, mix(strong))))
            # 4. the strong view agrees with them
            consistency = self.consistency_loss(logits[0][len(images) :], pseudo_label)
            # 5. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            # 6. total, and the teacher follows
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
        if self.config.cutmix_probability:
            self.warn_of_one_unlabelled("CutMix mixes unlabelled patches with one another")
        self._soft_dice = MemoryEfficientSoftDiceLoss(
            apply_nonlin=softmax_helper_dim1 if self.exclusive else torch.sigmoid,
            batch_dice=self.configuration_manager.batch_dice,
            do_bg=not self.exclusive,
            smooth=1e-5,
            ddp=self.is_ddp,
        )

    def cutmix(self, strong: Tensor) -> CutMix:
        """What mixes the strong view (B, C, *spatial) and all that is aligned with it."""
        return CutMix(strong, self.config.cutmix_probability)

    def consistency_loss(self, strong_logits: Tensor, pseudo_label: Tensor) -> Tensor:
        """Poster step 4, see ``losses.consistency_loss``."""
        config = self.config
        return consistency_loss(
            strong_logits,
            pseudo_label,
            config.consistency_target == "hard",
            self.exclusive,
            config.confidence_threshold,
            self._soft_dice if config.consistency_loss == "dice_cross_entropy" else None,
        )
