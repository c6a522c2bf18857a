from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_plgcl.contrast.embedding import EncoderFeatures
from nnunetv2_plgcl.semisupervised.decoders import FurtherDecoders
from nnunetv2_plgcl.semisupervised.losses import squared_consistency
from nnunetv2_plgcl.semisupervised.settings import SSL4MIS, ConsistencySettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class MCNetPlusSettings(ConsistencySettings):
    """How the decoders' predictions are sharpened."""

    published: ClassVar[Mapping[str, Any]] = SSL4MIS

    sharpening_temperature: float = setting(
        0.1, "T, a prediction to the power of 1/T is the target of the others [paper]",
        0, 1, open_interval=True,
    )  # fmt: skip


class nnUNetTrainerMCNetPlus(nnUNetTrainerSemiSupervised):
    """Mutual consistency of three decoders, MC-Net+ (Wu et al., MedIA 2022).

    Three decoders work on one encoder and differ in how they scale up: transposed convolution,
    which is nnU-Net's own, linear, and nearest neighbour. Each is supervised, and the prediction of
    each is held to the sharpened ones of the others, on labelled and unlabelled patches. Where they
    disagree the network is unsure, and learns. Only the first decoder is deployed; the others
    lie beside the network's weights in the checkpoint. Departures: nnU-Net's loss, where the public
    code computes a cross-entropy and drops it; the mean over the decoders, supervised loss and
    consistency alike, where it takes sums, so that the step is as long as with one; sharpened
    classes add up to one; they are targets, and no gradient runs through them. The published
    numbers are those of its 2D script; in its 3D script consistency weighs 1 and a decoder's Dice
    0.5, with a ramp of 0.4.

    Raises, before training starts and beyond its parent's:
        NotImplementedError: a network whose encoder or decoder cannot be shared.
    """

    settings_class = MCNetPlusSettings
    config: MCNetPlusSettings
    strong_views = 0

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images).weak
        with self.autocast():
            # 1. one encoder, three decoders
            logits = self.student_logits(torch.cat((images, unlabelled)))
            of_all = [logits, *self.further_decoders(self.encoder_features.take())]
            # 2. each agrees with the sharpened predictions of the others
            predictions = [class_probabilities(x[0], self.exclusive) for x in of_all]
            consistency = mutual_consistency(
                predictions, self.config.sharpening_temperature, self.exclusive
            )
            # 3. supervision of each
            supervised = torch.stack(
                [self.supervised_loss([x[: len(images)] for x in one], target) for one in of_all]
            ).mean()
            beta = self.config.consistency_weight * self.consistency_rampup
            loss = supervised + beta * consistency
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=predictions[0][len(images) :],
            loss=loss,
            loss_supervised=supervised,
            loss_consistency=consistency,
        )

    def initialize(self) -> None:
        super().initialize()
        decoders = FurtherDecoders(self.student)
        self.further_decoders = self.train_beside("further_decoders", decoders)
        number = len(getattr(self.student.encoder, "output_channels", ()))
        self.encoder_features = EncoderFeatures(self.student, range(number))


def sharpen(probabilities: Tensor, temperature: float, exclusive: bool) -> Tensor:
    """A prediction nearer to its decision: p^(1/T), divided by the sum over what excludes one
    another, classes or a region and the rest. (B, K, *spatial), without gradient."""
    power = probabilities.detach() ** (1 / temperature)
    if exclusive:
        return power / power.sum(1, True)
    return power / (power + (1 - probabilities.detach()) ** (1 / temperature))


def mutual_consistency(
    predictions: Sequence[Tensor], temperature: float, exclusive: bool
) -> Tensor:
    """Squared difference of each prediction from the sharpened ones of the others.

    Args:
        predictions: probabilities (B, K, *spatial), one a decoder.
        temperature: of sharpening, see ``sharpen``.
        exclusive: classes exclude one another; otherwise regions.

    Returns:
        scalar: the sum over the others, then the mean over the decoders.
    """
    sharp = [sharpen(p, temperature, exclusive) for p in predictions]
    pairs = [
        squared_consistency(prediction, sharp[j])
        for i, prediction in enumerate(predictions)
        for j in range(len(predictions))
        if i != j
    ]
    return torch.stack(pairs).sum() / len(predictions)
