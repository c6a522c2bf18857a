from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_plgcl.contrast.trainer import ContrastSettings, nnUNetTrainerContrast
from nnunetv2_plgcl.semisupervised.step import UnlabelledBatch
from nnunetv2_plgcl.settings import setting
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import (
    MeanTeacherSettings,
    nnUNetTrainerMeanTeacher,
)


@dataclass(frozen=True)
class PosterSettings(ContrastSettings, MeanTeacherSettings):
    """Those of the contrast and the mean teacher, with the memory of the authors' code."""

    memory_length: int = setting(
        4096, "embeddings remembered per class and side [authors' code]", 1
    )
    memory_draws: int = setting(
        0,
        "remembered embeddings per class and side that a step draws to contrast with, 0 for all "
        "of them [poster]",
        0,
    )


class nnUNetTrainerPLGCL_poster(nnUNetTrainerContrast, nnUNetTrainerMeanTeacher):
    """The paper's reading of PLGCL, for a reproduction: soft cross-entropy as consistency, windows
    by entropy, and every remembered embedding in the contrast. What ``nnUNetTrainerPLGCL`` was in
    version 0.1; the ablations are made from it. During warm-up true labels stand in for
    pseudo-labels (authors' code)."""

    settings_class = PosterSettings
    config: PosterSettings
    # both to be equal to version 0.1 to the bit
    most_classes = None
    embeds_every_window = True

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images)
        weak, strong = unlabelled.weak, unlabelled.strong[0]
        mix = self.cutmix(strong)
        strong = mix(strong)
        with self.autocast():
            # 1. pseudo-labels: the teacher's on the weak view, the label where there is one
            pseudo_label = mix(self.pseudo_label_of(unlabelled))
            confidence = torch.cat((self.label_maps(target), pseudo_label))
            logits = self.student_logits(torch.cat((images, strong)))
            student = self.seen_by_student(images, strong)
            teacher = self.seen_by_teacher(images, weak, mix)
            # 2. class-wise windows
            windows = self.draw_windows(teacher, confidence, len(images))
            # 3. embeddings, positives and negatives
            contrastive = self.contrastive_loss(student, teacher, confidence, windows)
            # 4. the strong view agrees with the teacher
            consistency = self.consistency_loss(logits[0][len(images) :], pseudo_label)
            # 5. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            # 6. total, and the teacher follows
            beta = self.config.consistency_weight * self.consistency_rampup
            gamma = self.config.contrastive_weight * self.contrastive_rampup
            loss = supervised + beta * consistency + gamma * contrastive
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=pseudo_label,
            loss=loss,
            loss_supervised=supervised,
            loss_consistency=consistency,
            loss_contrastive=contrastive,
            patches_per_class=self.patches_per_class(windows),
        )

    def pseudo_label_of(self, unlabelled: UnlabelledBatch) -> Tensor:
        """The teacher's confidence maps (B, K, *spatial) of the weak view."""
        return self.pseudo_label(unlabelled.weak)
