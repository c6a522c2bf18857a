from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_plgcl.contrast.embedding import ProjectionHead
from nnunetv2_plgcl.contrast.loss import sampled_info_nce
from nnunetv2_plgcl.contrast.memory import Remembered
from nnunetv2_plgcl.semisupervised.features import DecoderFeatures
from nnunetv2_plgcl.semisupervised.settings import StrongViewSettings
from nnunetv2_plgcl.semisupervised.targets import label_probabilities
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class LCLPLSettings(StrongViewSettings):
    """The local contrast."""

    published: ClassVar[Mapping[str, Any]] = {
        "voxels_per_class": 3,
        "warmup_fraction": 0.25,
        "deployed_weights": "student",
    }

    contrastive_weight: float = setting(0.1, "weight of the contrastive loss [public code]", 0)
    temperature: float = setting(0.1, "tau of the contrast [public code]", 0, open_interval=True)
    voxels_per_class: int = setting(
        64, "voxels drawn of each class in each patch [ours; public code: 3]", 1
    )
    confidence_threshold: float = setting(
        0.5, "voxels where the teacher is less sure are not drawn [ours]", 0.5, 1
    )


class nnUNetTrainerLCLPL(nnUNetTrainerSemiSupervised):
    """Local contrastive loss with pseudo-labels (Chaitanya et al., MedIA 2023).

    Voxels of each class are drawn in each patch, by the label or the teacher's pseudo-label, and
    embedded from the decoder's last features. Each is pulled to the mean embeddings of its class,
    in its own patch and in the others, and away from those of other classes. Unlabelled patches
    have no other loss. Departures: the EMA teacher labels the weak view in every step and the
    student sees the strong one, where the public code refines stored labels by a random field that
    was tuned on its data; a mean is that of the drawn voxels; patches that lack a class stay, and
    background is a class among the others, so that there is a contrast with one foreground class.

    Raises, before training starts and beyond its parent's:
        NotImplementedError: regions; a network whose decoder gives no features.
    """

    settings_class = LCLPLSettings
    config: LCLPLSettings

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        with self.autocast():
            # 1. labels and pseudo-labels
            pseudo_label = self.pseudo_label(weak)
            classes = torch.cat((self.label_maps(target[0]), pseudo_label))
            logits = self.student_logits(torch.cat((images, strong)))
            # 2. voxels of each class, embedded
            features, drawn = self.draw(self.decoder_features.take(), classes)
            # 3. each is near its class's means
            contrastive = local_contrast(self.head(features), drawn, self.config.temperature)
            # 4. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            gamma = self.config.contrastive_weight * self.consistency_rampup
            loss = supervised + gamma * contrastive
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=pseudo_label,
            loss=loss,
            loss_supervised=supervised,
            loss_contrastive=contrastive,
            patches_per_class=drawn.sum((0, 2)),
        )

    def label_maps(self, target: Tensor) -> Tensor:
        """The label (B, 1, *spatial) as one map a class, (B, K, *spatial)."""
        manager = self.label_manager
        return label_probabilities(
            target, manager.num_segmentation_heads, self.exclusive, manager.ignore_label
        )

    def draw(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Features of voxels drawn at random from each class of each patch.

        Args:
            features: (B, C, *spatial).
            classes: probabilities, (B, K, *spatial).

        Returns:
            (B, K, N, C) and, false where a patch lacks the class, (B, K, N) bool.
        """
        number = self.config.voxels_per_class
        inside = classes.flatten(2) > 0.5
        inside &= classes.flatten(2) >= self.config.confidence_threshold
        present = inside.any(2, True)
        # something has to be drawn, whether or not it counts
        weights = torch.where(present, inside, True).float().flatten(0, 1)
        voxels = torch.multinomial(weights, number, replacement=True)
        voxels = voxels.view(len(features), 1, -1).expand(-1, features.shape[1], -1)
        drawn = features.flatten(2).gather(2, voxels).unflatten(2, (classes.shape[1], number))
        return drawn.movedim(1, 3), present.expand(-1, -1, number)

    def initialize(self) -> None:
        super().initialize()
        if not self.exclusive:
            raise NotImplementedError(
                "LCLPL contrasts classes that exclude one another, but this dataset has regions, "
                "in which a voxel may belong to several. Write plain labels into dataset.json, or "
                "use another method."
            )
        self.decoder_features = DecoderFeatures(self.student)
        head = ProjectionHead(self.decoder_features.num_channels)
        self.head = self.train_beside("projection_head", head)


def local_contrast(embeddings: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """InfoNCE of voxels against the mean embeddings of all classes in all patches.

    Args:
        embeddings: (B, K, N, E), L2-normalised.
        drawn: (B, K, N) bool, all or none of N: whether the patch has the class.
        temperature: tau.

    Returns:
        scalar; zero where fewer than two classes are there.
    """
    means = F.normalize(embeddings.mean(2), dim=-1).transpose(0, 1)
    positives = Remembered(means, drawn[:, :, 0].T)
    negatives = positives.of_other_classes()
    return sampled_info_nce(
        embeddings,
        drawn,
        positives.entries,
        positives.filled,
        negatives.entries,
        negatives.filled,
        temperature,
    )
