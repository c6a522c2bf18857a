from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from torch import Tensor

from nnunetv2_plgcl.semisupervised.distance import distances_to_probabilities, signed_distances
from nnunetv2_plgcl.semisupervised.features import DecoderFeatures
from nnunetv2_plgcl.semisupervised.losses import squared_consistency
from nnunetv2_plgcl.semisupervised.settings import ConsistencySettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities, ignored_voxels
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class DTCSettings(ConsistencySettings):
    """The head of signed distances."""

    published: ClassVar[Mapping[str, Any]] = {
        "consistency_rampup_fraction": 1.0,
        "warmup_fraction": 0.0,
        "deployed_weights": "student",
    }

    distance_weight: float = setting(
        0.3, "weight of the squared error of labelled patches' distances [paper]", 0
    )
    sharpness: float = setting(
        1500.0, "k of sigmoid(-k z), which makes distances z a mask [paper]", 0, open_interval=True
    )


class nnUNetTrainerDTC(nnUNetTrainerSemiSupervised):
    """Dual-task consistency (Luo et al., AAAI 2021).

    A second head on the decoder's last features predicts how far each voxel is from the surface of
    each class, negative inside. It learns this from labelled patches; on all patches the mask that
    its distances give is held to the segmentation by the mean squared difference. No teacher: the
    EMA weights are there to be deployed, and the head is left behind. Departures: the paper has one
    class, here each foreground class or region has a map, 0 where a patch lacks it, as in the
    public code, so that the mask is one half there; nnU-Net's loss, where the public code computes
    a cross-entropy and drops it; the last checkpoint, where it selects on the test list.

    Raises, before training starts and beyond its parent's:
        NotImplementedError: a network whose decoder gives no features.
    """

    settings_class = DTCSettings
    config: DTCSettings
    strong_views = 0

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images).weak
        with self.autocast():
            # 1. segmentation and signed distances, from one pass
            logits = self.student_logits(torch.cat((images, unlabelled)))
            distances = torch.tanh(self.head(self.decoder_features.take()).float())
            # 2. both tell the same
            prediction = class_probabilities(logits[0], self.exclusive)
            foreground = prediction[:, -distances.shape[1] :]
            mask = distances_to_probabilities(distances, self.config.sharpness)
            consistency = squared_consistency(mask, foreground)
            # 3. supervision of both
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            of_distances = self.distance_loss(distances[: len(images)], target[0])
            beta = self.config.consistency_weight * self.consistency_rampup
            loss = supervised + self.config.distance_weight * of_distances + beta * consistency
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=prediction[len(images) :],
            loss=loss,
            loss_supervised=supervised,
            loss_consistency=consistency,
        )

    def distance_loss(self, distances: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of predicted distances (B, F, *spatial), over voxels with a label.

        Args:
            target: nnU-Net's at full resolution, (B, C, *spatial).
        """
        classes = self.label_manager.num_segmentation_heads
        true = signed_distances(target, classes, self.exclusive, self.configuration_manager.spacing)
        if not self.label_manager.has_ignore_label:
            return squared_consistency(distances, true)
        known = ~ignored_voxels(target, classes, self.exclusive)
        return squared_consistency(distances, true, known)

    def initialize(self) -> None:
        super().initialize()
        self.decoder_features = DecoderFeatures(self.student)
        maps = self.label_manager.num_segmentation_heads - self.exclusive  # none of background
        convolution = convert_dim_to_conv_op(len(self.configuration_manager.patch_size))
        head = convolution(self.decoder_features.num_channels, maps, 1)
        self.head = self.train_beside("distance_head", head)
