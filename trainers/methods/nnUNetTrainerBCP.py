from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_plgcl.semisupervised.components import filter_patches, largest
from nnunetv2_plgcl.semisupervised.hard_labels import nnUNetTrainerHardPseudoLabels
from nnunetv2_plgcl.semisupervised.losses import weighted_loss
from nnunetv2_plgcl.semisupervised.mixing import BoxMix, copy_paste
from nnunetv2_plgcl.semisupervised.settings import SemiSupervisedSettings
from nnunetv2_plgcl.semisupervised.targets import join_targets
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class BCPSettings(SemiSupervisedSettings):
    """Weight and cleaning of the teacher's part of a mixed patch."""

    published: ClassVar[Mapping[str, Any]] = {
        "ema_decay": 0.99,
        "warmup_fraction": 0.25,
        "deployed_weights": "student",
    }

    pseudo_label_weight: float = setting(
        0.5, "weight of the loss on pseudo-labels, where that on labels has 1 [public code]", 0
    )
    patch_filter: str = setting(
        "largest",
        "keep the largest component of each class of a pseudo-label, or all [public code: largest]",
        choices=("largest", "none"),
    )


class nnUNetTrainerBCP(nnUNetTrainerHardPseudoLabels):
    """Bidirectional copy-paste (Bai et al., CVPR 2023).

    A box of two thirds of each edge is exchanged between a labelled and an unlabelled patch, so
    that true and pseudo-labels meet in every patch that the student sees. In warm-up the box is
    exchanged between two labelled patches. Pseudo-labels are the teacher's decisions, reduced to
    the largest component of each class. The labelled and the unlabelled part of mixed patches have
    a loss of their own, and the other part leaves every sum of it, as in the public code since its
    issue 25. Departures: nnU-Net's loss at every resolution; the two losses are averaged, so that
    the step is as long as in warm-up; the last checkpoint, where it selects on validation.

    Raises, before training starts and beyond its parent's:
        NotImplementedError: a loss that is not nnU-Net's Dice and cross-entropy.
    """

    strong_views = 0
    settings_class = BCPSettings
    config: BCPSettings

    def initialize(self) -> None:
        super().initialize()
        self.weighted_loss = weighted_loss(self)

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        if self.is_warmup:
            pseudo, (mixed, mixed_target) = None, copy_paste(images, target)
            with self.autocast():
                loss = self.supervised_loss(self.student_logits(mixed), mixed_target)
        else:
            weak = self.unlabelled_batch(like=images).weak
            with self.autocast():
                pseudo = self.clean_label(self.pseudo_label(weak))
                mix = BoxMix(weak[:1].expand(self.planned_batch_size // 2, *weak.shape[1:]))
                logits = self.student_logits(self.both_ways(mix, images, weak))
                loss = self.mixed_loss(mix, logits, target, self.at_every_resolution(pseudo))
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(pseudo_label=pseudo, loss=loss, loss_supervised=loss)

    def clean_label(self, probabilities: Tensor) -> Tensor:
        """The teacher's decisions, filtered; ``probabilities`` is (B, K, *spatial)."""
        label = self.hard_target(probabilities)
        if self.config.patch_filter == "none":
            return label
        return filter_patches(label, probabilities, largest, self.exclusive)

    def both_ways(self, mix: BoxMix, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        """Labelled inside the box, then unlabelled inside it: (2 pairs, C, *spatial)."""
        return torch.cat((mix(unlabelled, labelled), mix(labelled, unlabelled)))

    def mixed_loss(
        self, mix: BoxMix, logits: list[Tensor], target: list[Tensor], pseudo: list[Tensor]
    ) -> Tensor:
        """nnU-Net's loss of the labelled part of mixed patches, averaged with that of the rest.

        Args:
            logits: of ``both_ways``, one a resolution.
            target: nnU-Net's, of the labelled patches.
            pseudo: as many, of the unlabelled ones.
        """
        targets, of_labels, of_pseudo = [], [], []
        for both in join_targets(target, pseudo):
            labelled, unlabelled = both.split((len(target[0]), len(pseudo[0])))
            targets.append(self.both_ways(mix, labelled, unlabelled))
            ones = torch.ones_like(both[:1, :1], dtype=torch.float32)
            of_labels.append(self.both_ways(mix, ones, torch.zeros_like(ones)))
            of_pseudo.append(1 - of_labels[-1])
        weight = self.config.pseudo_label_weight
        losses = []
        for part in (of_labels, of_pseudo):
            given = logits, targets, part
            each = given if self.enable_deep_supervision else [x[0] for x in given]
            losses.append(self.weighted_loss(*each))
        return (losses[0] + weight * losses[1]) / (1 + weight)
