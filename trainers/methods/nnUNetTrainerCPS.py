from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_plgcl.semisupervised.hard_labels import nnUNetTrainerHardPseudoLabels
from nnunetv2_plgcl.semisupervised.second_student import SecondStudent
from nnunetv2_plgcl.semisupervised.settings import SSL4MIS, ConsistencySettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities


@dataclass(frozen=True)
class CPSSettings(ConsistencySettings):
    """Those of consistency, no others."""

    published: ClassVar[Mapping[str, Any]] = SSL4MIS


class nnUNetTrainerCPS(nnUNetTrainerHardPseudoLabels):
    """Cross pseudo supervision (Chen et al., CVPR 2021).

    Two networks of one architecture and different initial weights see the same patches; the
    decisions of each are the labels of the other's unlabelled patches. The first is deployed, as
    the EMA of its weights or as it is, and the losses in the log are its own. Departures: nnU-Net's
    Dice and cross-entropy at every resolution, where the paper has cross-entropy alone; no CutMix;
    decisions for unlabelled patches only, as in SSL4MIS, whose numbers are the published ones.
    """

    settings_class = CPSSettings
    config: CPSSettings
    strong_views = 0

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak = self.unlabelled_batch(like=images).weak
        patches = torch.cat((images, weak))
        beta = self.config.consistency_weight * self.consistency_rampup
        with self.autocast():
            # 1. both networks predict all patches
            both = [self.student_logits(patches), self.second.student_logits(patches)]
            labelled = [[x[: len(images)] for x in logits] for logits in both]
            unlabelled = [[x[len(images) :] for x in logits] for logits in both]
            # 2. the decisions of each are labels for the other
            decisions = [self.decide(logits[0]) for logits in unlabelled]
            consistency = list(map(self.pseudo_label_loss, unlabelled, reversed(decisions)))
            # 3. supervision of each
            supervised = [self.supervised_loss(logits, target) for logits in labelled]
            losses = [s + beta * c for s, c in zip(supervised, consistency, strict=True)]
        self.optimise(*losses)
        self.update_teacher()
        return self.finish_step(
            pseudo_label=decisions[1][0],
            loss=losses[0],
            loss_supervised=supervised[0],
            loss_consistency=consistency[0],
        )

    def optimise(self, *losses: Tensor) -> None:
        """A step of both networks, or of neither."""
        both = (self, self.second)
        for network, loss in zip(both, losses, strict=True):
            network.backward(loss)
        for network in both:
            network.take_step()

    @property
    def gradient_scalers(self) -> list[torch.amp.GradScaler]:
        scalers = (self.grad_scaler, self.second.grad_scaler)
        return [scaler for scaler in scalers if scaler is not None]

    def decide(self, logits: Tensor) -> list[Tensor]:
        """Decisions at every resolution, without gradient, from logits (B, K, *spatial)."""
        probabilities = class_probabilities(logits.detach(), self.exclusive)
        return self.at_every_resolution(self.hard_target(probabilities))

    def initialize(self) -> None:
        super().initialize()
        self.second = SecondStudent(self)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.second.on_train_epoch_start(self.current_epoch)

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "second_student": self.second.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.second.load_state_dict(state["second_student"])
