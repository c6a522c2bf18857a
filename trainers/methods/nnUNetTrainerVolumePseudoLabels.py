from dataclasses import dataclass

import torch

from nnunetv2_plgcl.semisupervised.hard_labels import nnUNetTrainerHardPseudoLabels
from nnunetv2_plgcl.semisupervised.relabelling import VolumeSettings, nnUNetTrainerRelabelling
from nnunetv2_plgcl.semisupervised.settings import StrongViewSettings
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class VolumePseudoLabelsSettings(VolumeSettings, StrongViewSettings):
    """Those of labelled volumes, and of the strong view that learns from them."""

    volume_threshold: float = setting(
        0.7, "voxels of volumes where the teacher is less sure are ignored [ours]", 0, 1
    )


class nnUNetTrainerVolumePseudoLabels(nnUNetTrainerRelabelling, nnUNetTrainerHardPseudoLabels):
    """Iterated pseudo-labelling inside one training, as users of nnU-Net do it by hand.

    The usual way (among others the winners of FLARE 2022) trains, predicts all unlabelled volumes,
    filters the predictions and trains again on both. Here the EMA teacher labels the volumes a few
    times within one training, false islands are taken off where they can be seen, in the whole
    volume, and unsure voxels are ignored. The student learns from the strong view, in one call of
    nnU-Net's loss with the labelled patches, of which every batch keeps its share.

    Raises, before training starts and beyond its parent's:
        ValueError: no warm-up, so that there is no teacher to label volumes.
    """

    settings_class = VolumePseudoLabelsSettings
    config: VolumePseudoLabelsSettings

    def initialize(self) -> None:
        if self.warmup_epochs == 0:
            raise ValueError(
                'Volumes are labelled by a teacher that has learnt something: set "warmup_fraction"'
                " above 0 and train more than one epoch."
            )
        super().initialize()

    @property
    def least_confidence(self) -> float:
        return self.config.volume_threshold

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images)
        with self.autocast():
            logits = self.student_logits(torch.cat((images, *unlabelled.strong)))
            loss = self.pooled_loss(logits, target, unlabelled.target)
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(pseudo_label=unlabelled.target[0], loss=loss, loss_supervised=loss)
