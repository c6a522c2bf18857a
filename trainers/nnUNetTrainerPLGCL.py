import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_plgcl.contrast.embedding import EncoderFeatures, FeatureEmbedder, ProjectionHead
from nnunetv2_plgcl.contrast.guidance import GUIDES
from nnunetv2_plgcl.contrast.loss import sampled_info_nce
from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.patches import Windows, window_statistics
from nnunetv2_plgcl.semisupervised.pseudo_label import label_probabilities
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised

MINIMUM_WINDOW = 16  # voxels


class nnUNetTrainerPLGCL(nnUNetTrainerSemiSupervised):
    """Pseudo-label Guided Contrastive Learning (Basak & Yin, CVPR 2023), the poster's six steps.

    Beside the mean teacher of ``nnUNetTrainerSemiSupervised`` it draws class-wise windows where
    the pseudo-labels can be trusted, embeds them, and pulls windows of one class together. During
    warm-up true labels stand in for pseudo-labels (authors' code).
    """

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        with self.autocast():
            # 1. pseudo-labels: the teacher's on the weak view, the label where there is one
            pseudo_label = self.pseudo_label(weak)
            confidence = torch.cat((self.label_maps(target), pseudo_label))
            logits = self.student_logits(torch.cat((images, strong)))
            # 2. class-wise windows
            windows = self.draw_windows(confidence)
            # 3. embeddings, positives and negatives
            contrastive = self.contrastive_loss(images, weak, strong, confidence, windows)
            # 4. the strong view agrees with the teacher
            consistency = self.consistency_loss(logits[0][len(images) :], pseudo_label)
            # 5. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            # 6. total, and the teacher follows
            beta = self.config.consistency_weight * self.consistency_rampup
            gamma = self.config.contrastive_weight
            loss = supervised + beta * consistency + gamma * contrastive
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(
            loss=loss,
            loss_supervised=supervised,
            loss_consistency=consistency,
            loss_contrastive=contrastive,
            patches_per_class=windows.count(),
        )

    def initialize(self) -> None:
        super().initialize()
        config, classes = self.config, self.label_manager.num_segmentation_heads
        # The teacher was copied from a student without hooks, so each keeps its own features.
        self.student_features = EncoderFeatures(self.student, config.feature_stage)
        self.teacher_features = EncoderFeatures(self.teacher.module, config.feature_stage)
        head = ProjectionHead(self.student_features.num_channels)
        self.embedder = FeatureEmbedder(head).to(self.device)
        self.teacher_embedder = EMATeacher(self.embedder, config.ema_decay)
        self._embed = DistributedDataParallel(self.embedder) if self.is_ddp else self.embedder
        self.optimizer.add_param_group({"params": list(self.embedder.parameters())})
        self.positives = ClassMemory(classes, config.memory_length).to(self.device)
        self.negatives = ClassMemory(classes, config.memory_length).to(self.device)
        self.guide = GUIDES[config.guide]()

    def label_maps(self, target: list[Tensor]) -> Tensor:
        """Confidence maps (B, K, *spatial) of the labelled images: their labels."""
        return label_probabilities(
            target[0],
            self.label_manager.num_segmentation_heads,
            self.exclusive,
            self.label_manager.ignore_label,
        )

    def draw_windows(self, confidence: Tensor) -> Windows:
        """Draw windows of every class in every image (poster step 2).

        Args:
            confidence: (B, K, *spatial).
        """
        size = [
            min(edge, max(MINIMUM_WINDOW, round(edge * self.config.window_fraction)))
            for edge in confidence.shape[2:]
        ]
        per_map = math.ceil(self.config.anchors / (confidence.shape[0] * confidence.shape[1]))
        return self.guide(window_statistics(confidence, size), per_map)

    def contrastive_loss(
        self, images: Tensor, weak: Tensor, strong: Tensor, confidence: Tensor, windows: Windows
    ) -> Tensor:
        """InfoNCE of the student's windows against the memory of the teacher's (poster step 3).

        Args:
            images, weak, strong: (B_L, C, *spatial) and twice (B_U, C, *spatial), as just seen by
                student and teacher.
            confidence: (B_L + B_U, K, *spatial).
            windows: drawn from it.
        """
        anchors = self._embed(
            torch.cat((images, strong)), self.student_features.take(), confidence, windows
        )
        with torch.no_grad():
            keys = self.teacher_embedder(
                torch.cat((images, weak)), self._teacher_features(images, weak), confidence, windows
            )
        self.positives.enqueue(keys, windows.valid & windows.positive)
        self.negatives.enqueue(keys, windows.valid & ~windows.positive)
        if self.guide.two_sided:
            negatives = self.negatives.entries(), self.negatives.filled()
        else:
            negatives = self.positives.of_other_classes()
        return sampled_info_nce(
            anchors,
            windows.valid & windows.positive,
            self.positives.entries(),
            self.positives.filled(),
            *negatives,
            self.config.temperature,
        )

    def _teacher_features(self, images: Tensor, weak: Tensor) -> Tensor:
        """Teacher's feature maps of both parts of the batch. The weak view went through the
        teacher already; labelled images need its encoder only."""
        of_weak = [self.teacher_features.take()] if len(weak) else []
        self.teacher.module.encoder(images)
        return torch.cat([self.teacher_features.take(), *of_weak])

    def update_teacher(self) -> None:
        super().update_teacher()
        self.teacher_embedder.update_parameters(self.embedder)

    def training_state(self) -> dict[str, Any]:
        modules = {name: module.state_dict() for name, module in self._contrast_modules().items()}
        return {**super().training_state(), **modules}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        for name, module in self._contrast_modules().items():
            module.load_state_dict(state[name])

    def _contrast_modules(self) -> dict[str, torch.nn.Module]:
        return {
            "embedder": self.embedder,
            "teacher_embedder": self.teacher_embedder,
            "positives": self.positives,
            "negatives": self.negatives,
        }
