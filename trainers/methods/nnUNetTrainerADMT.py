from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nnunetv2_plgcl.semisupervised.hard_labels import nnUNetTrainerHardPseudoLabels
from nnunetv2_plgcl.semisupervised.mixing import CutMix
from nnunetv2_plgcl.semisupervised.settings import ConsistencySettings, StrongViewSettings
from nnunetv2_plgcl.semisupervised.targets import (
    confidence,
    hard_target,
    normalised_entropy,
)
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class ADMTSettings(ConsistencySettings, StrongViewSettings):
    """How the teachers take turns, and which pseudo-labels count."""

    published: ClassVar[Mapping[str, Any]] = {
        "consistency_weight": 2.0,
        "consistency_rampup_fraction": 50 * 150 / 30_000,  # 50 units of 150 iterations
        "warmup_fraction": 0.0,
        "ema_decay": 0.99,
    }

    longest_turn: int = setting(
        50, "iterations after which the other teacher is updated, at most [public code]", 1
    )
    confidence_threshold: float = setting(
        0.95, "voxels of less confident pseudo-labels are ignored [public code]", 0, 1
    )


class nnUNetTrainerADMT(nnUNetTrainerHardPseudoLabels):
    """Alternate diverse teaching (Zhao et al., ECCV 2024).

    Two EMA teachers follow the student in turns of random length. In the turn of the first the
    student sees strong views, in that of the second CutMix of weak ones, so the teachers
    accumulate different students. Their predictions are averaged, the surer one with more weight;
    where their decisions differ, the student's own prediction of the weak view is taken if it is
    surer still. The first teacher is deployed. Departures: nnU-Net's Dice and cross-entropy at
    every resolution in place of Dice alone. The public code weights both teachers by the sum of
    their entropies, which is a plain mean; here each has the weight of its own.

    Raises, before training starts and beyond its parent's:
        ValueError: fewer than two unlabelled patches a batch.
    """

    settings_class = ADMTSettings
    config: ADMTSettings

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        mix = CutMix(weak, 0.0 if self.first_has_turn else 1.0)
        view = mix(strong if self.first_has_turn else weak)
        with self.autocast():
            # 1. what both teachers, and in doubt the student, make of the weak view
            teachers = [self.pseudo_label(weak), self.pseudo_label(weak, self._run_second)]
            joined = join_predictions(*teachers, self.own_prediction(weak), self.exclusive)
            pseudo = mix(self.hard_target(joined, self.config.confidence_threshold))
            # 2. the student learns it on this turn's view
            logits = self.student_logits(torch.cat((images, view)))
            consistency = self.pseudo_label_loss(
                [x[len(images) :] for x in logits], self.at_every_resolution(pseudo)
            )
            # 3. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
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

    def update_teacher(self) -> None:
        """The teacher whose turn it is follows the student; at its end a new one is drawn."""
        teacher = self.teacher if self.first_has_turn else self.second_teacher
        teacher.update_parameters(self.student)
        self.left_of_turn -= 1
        if self.left_of_turn == 0:
            self.first_has_turn = not self.first_has_turn
            steps = int(self.teacher.n_averaged + self.second_teacher.n_averaged)
            # not from torch's generator: every rank has its own, and all take the same turns
            generator = np.random.default_rng((self.config.seed, steps))
            self.left_of_turn = int(generator.integers(1, self.config.longest_turn, endpoint=True))

    def initialize(self) -> None:
        super().initialize()
        self.require_two_unlabelled("AD-MT mixes unlabelled patches with one another")
        self.second_teacher = EMATeacher(self.student, self.config.ema_decay)
        self.second_teacher.module.decoder.deep_supervision = False  # type: ignore
        self._run_second = self.compiled(self.second_teacher)
        self.first_has_turn, self.left_of_turn = True, self.config.longest_turn

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.teacher.n_averaged == 0:  # a new training, perhaps with pretrained weights
            self.second_teacher.module.load_state_dict(self.student.state_dict())

    def training_state(self) -> dict[str, Any]:
        return {
            **super().training_state(),
            "second_teacher": self.second_teacher.state_dict(),
            "turn": (self.first_has_turn, self.left_of_turn),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.second_teacher.load_state_dict(state["second_teacher"])
        self.first_has_turn, self.left_of_turn = state["turn"]


def join_predictions(first: Tensor, second: Tensor, student: Tensor, exclusive: bool) -> Tensor:
    """One prediction of two teachers and, where their decisions differ, the student.

    Args:
        first, second: probabilities of the teachers, (B, K, *spatial). Their mean is weighted by
            exp(-entropy) of each, the entropy as a share of the highest.
        student: likewise; taken where the teachers differ and it is surer than their mean.
        exclusive: classes exclude one another; otherwise regions.
    """
    weights = [torch.exp(-normalised_entropy(p, exclusive)) for p in (first, second)]
    mean = (weights[0] * first + weights[1] * second) / (weights[0] + weights[1])
    conflict = hard_target(first, exclusive) != hard_target(second, exclusive)
    surer = confidence(student, exclusive) > confidence(mean, exclusive)
    return torch.where(conflict.any(1, True) & surer, student, mean)
