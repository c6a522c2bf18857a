"""Pseudo-labels that are targets like labels: hard, at every resolution, for nnU-Net's own loss."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_plgcl.semisupervised.losses import loss_with_ignore_label
from nnunetv2_plgcl.semisupervised.targets import (
    at_every_resolution,
    class_probabilities,
    hard_target,
    join_targets,
)
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised


class nnUNetTrainerHardPseudoLabels(nnUNetTrainerSemiSupervised):
    """What methods need that train nnU-Net's Dice and cross-entropy on pseudo-labels."""

    def initialize(self) -> None:
        super().initialize()
        self.loss_with_ignore = loss_with_ignore_label(self)

    def hard_target(self, probabilities: Tensor, threshold: float = 0.0) -> Tensor:
        """See ``targets.hard_target``: decisions, ignored where less sure than ``threshold``."""
        return hard_target(probabilities, self.exclusive, threshold)

    def own_prediction(self, weak: Tensor) -> Tensor:
        """The student's probabilities (B, K, *spatial) of the weak view, without gradient."""
        if len(weak) == 0:
            return self.pseudo_label(weak)
        with torch.no_grad():
            probabilities = class_probabilities(self.student_logits(weak)[0], self.exclusive)
        # The next pass must not use this one's half precision weights, which have no gradient
        # (PyTorch issue 112583).
        torch.clear_autocast_cache()
        return probabilities

    def at_every_resolution(self, target: Tensor) -> list[Tensor]:
        """The target (B, C, *spatial) at each resolution of deep supervision, the finest first."""
        if len(target) == 0:  # warm-up; nothing of no size can be resized
            return [target]
        return at_every_resolution(target, self._get_deep_supervision_scales())

    def pseudo_label_loss(self, logits: list[Tensor], pseudo_target: list[Tensor]) -> Tensor:
        """nnU-Net's loss of unlabelled patches alone; zero for an empty batch, as in warm-up.

        Args:
            logits: (B, K, *s), one a resolution.
            pseudo_target: as many, from ``at_every_resolution``.
        """
        if len(logits[0]) == 0:
            return torch.stack([x.float().sum() for x in logits]).sum()
        if self.enable_deep_supervision:
            return self.loss_with_ignore(logits, pseudo_target)
        return self.loss_with_ignore(logits[0], pseudo_target[0])

    def pooled_loss(
        self, logits: list[Tensor], target: list[Tensor], pseudo_target: list[Tensor]
    ) -> Tensor:
        """One call of nnU-Net's loss for labelled and unlabelled patches: true voxels and pseudo-
        labels share the sums of the batch Dice, which keeps the sizes of classes plausible.

        Args:
            logits: (B + B', K, *s), one a resolution, labelled patches first.
            target: of the labelled patches, (B, C, *s) each.
            pseudo_target: of the others, (B', C', *s) each.
        """
        if len(pseudo_target[0]) == 0:  # warm-up
            return self.supervised_loss(logits, target)
        return self.pseudo_label_loss(logits, join_targets(target, pseudo_target))
