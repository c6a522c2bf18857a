from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nnunetv2_plgcl.semisupervised.hard_labels import nnUNetTrainerHardPseudoLabels
from nnunetv2_plgcl.semisupervised.mixing import CutMix
from nnunetv2_plgcl.semisupervised.perturbation import FeatureDropout
from nnunetv2_plgcl.semisupervised.settings import ConsistencySettings, StrongViewSettings
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class UniMatchSettings(ConsistencySettings, StrongViewSettings):
    """What a strong view keeps, and which pseudo-labels count."""

    published: ClassVar[Mapping[str, Any]] = {
        "ema_decay": 0.996,
        "consistency_rampup_fraction": 0,
        "warmup_fraction": 0,
        "cutout_probability": 0,
    }

    confidence_threshold: float = setting(
        0.95, "voxels where the teacher is less sure are ignored [public code]", 0, 1
    )
    cutmix_probability: float = setting(
        0.5, "share of strong views with a box pasted from another patch [public code]", 0, 1
    )


class nnUNetTrainerUniMatch(nnUNetTrainerHardPseudoLabels):
    """Two strong views and complementary channel dropout, after UniMatch V2 (Yang et al., 2025).

    Both strong views of an unlabelled patch learn the EMA teacher's decisions on its weak view.
    Of each feature map of the encoder the one view keeps the channels that the other loses; half
    of the patches keep all. Departures: nnU-Net's Dice and cross-entropy at every resolution with
    unsure voxels ignored, as UniMatch's own medical code trains Dice; a ramp-up; a U-Net in place
    of a pretrained transformer. The student sees half as many patches again as the plans' batch.

    Raises, before training starts and beyond its parent's:
        NotImplementedError: a network without an encoder that gives feature maps.
    """

    strong_views = 2
    settings_class = UniMatchSettings
    config: UniMatchSettings

    def initialize(self) -> None:
        super().initialize()
        if self.config.cutmix_probability:
            self.warn_of_one_unlabelled("CutMix mixes unlabelled patches with one another")
        self.feature_dropout = FeatureDropout(self.student)

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images)
        mixes = [CutMix(view, self.config.cutmix_probability) for view in unlabelled.strong]
        views = [mix(view) for mix, view in zip(mixes, unlabelled.strong, strict=True)]
        with self.autocast():
            # the teacher's decisions on the weak view, mixed as each strong view is
            probabilities = self.pseudo_label(unlabelled.weak)
            pseudo = self.hard_target(probabilities, self.config.confidence_threshold)
            pseudo = torch.cat([mix(pseudo) for mix in mixes])
            # one pass: labelled patches whole, each strong view with its half of the channels
            masks = self.feature_dropout.complementary_masks(unlabelled.weak)
            with self.feature_dropout.on(*masks, whole=len(images)):
                logits = self.student_logits(torch.cat((images, *views)))
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            consistency = self.pseudo_label_loss(
                [x[len(images) :] for x in logits], self.at_every_resolution(pseudo)
            )
            beta = self.config.consistency_weight * self.consistency_rampup
            loss = supervised + beta * consistency
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=pseudo,
            loss=loss,
            loss_supervised=supervised,
            loss_consistency=consistency,
        )
