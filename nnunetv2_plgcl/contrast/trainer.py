"""The contrast of windows between student and teacher, for trainers of any consistency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_plgcl.contrast.embedding import (
    CropEmbedder,
    EncoderFeatures,
    FeatureEmbedder,
    ProjectionHead,
)
from nnunetv2_plgcl.contrast.guidance import (
    GUIDES,
    cosine_similarity,
    draw_classes,
    of_classes,
)
from nnunetv2_plgcl.contrast.loss import closed_form_info_nce, sampled_info_nce
from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.patches import (
    Windows,
    WindowStatistics,
    every_window,
    window_statistics,
)
from nnunetv2_plgcl.semisupervised import log
from nnunetv2_plgcl.semisupervised.losses import sigmoid_rampup
from nnunetv2_plgcl.semisupervised.settings import SemiSupervisedSettings
from nnunetv2_plgcl.semisupervised.targets import label_probabilities
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting

MINIMUM_WINDOW = 16  # voxels

# Images (B, C, *spatial) as student or teacher saw them, and the feature maps that they gave.
Seen = tuple[Tensor, Sequence[Tensor]]


@dataclass(frozen=True)
class ContrastSettings(SemiSupervisedSettings):
    """Windows, their embeddings and the contrastive loss."""

    contrastive_weight: float = setting(
        0.1, "gamma, weight of the contrastive loss [ours; authors' code has 0.5]", 0
    )
    contrastive_rampup_fraction: float = setting(
        1 / 3, "share of all epochs over which gamma ramps up [ours]", 0, 1
    )
    temperature: float = setting(0.2, "tau of InfoNCE [authors' code]", 0, open_interval=True)
    anchors: int = setting(
        128, "anchors per iteration, spread over images and classes [authors' code]", 1
    )
    memory_length: int = setting(
        1024, "embeddings remembered per class and side [ours; authors' code has 4,096]", 1
    )
    memory_draws: int = setting(
        256,
        "remembered embeddings per class and side that a step draws to contrast with, 0 for all "
        "of them [ours]",
        0,
    )
    window_fraction: float = setting(
        0.25,
        "edge of a window as a share of the training patch's, at least 16 voxels [ours]",
        0,
        1,
        open_interval=True,
    )
    guide: str = setting(
        "entropy",
        "what draws the windows [poster, second ablation]",
        choices=("entropy", "lowest_entropy", "confidence", "cosine"),
    )
    balanced_sides: bool = setting(
        True, "as many positives as negatives of each class, instead of sides by chance [ours]"
    )
    embedding: str = setting(
        "feature",
        "pool feature maps inside a window [ours], or encode the crop again [authors' code]",
        choices=("feature", "crop"),
    )
    feature_stages: tuple[int, ...] = setting(
        (-2,), "encoder stages that feature embedding pools, 0 the finest, -1 the coarsest [ours]"
    )
    expectation: str = setting(
        "sampled",
        "InfoNCE over sampled pairs [poster], or its closed-form bound [authors' code]",
        choices=("sampled", "closed_form"),
    )
    covariance_scale: float = setting(
        4.0, "lambda of the closed form at the end of its linear ramp-up [authors' code]", 0
    )
    negatives_per_class: float = setting(
        1.0,
        "negatives that the closed form counts for each other class [ours]",
        0,
        open_interval=True,
    )


class nnUNetTrainerContrast(nnUNetTrainerSemiSupervised):
    """Class-wise windows, their embeddings and the contrastive loss: poster steps 2 and 3.

    It draws windows where the pseudo-labels can be trusted, embeds them, and pulls windows of one
    class together. The ``train_step`` is the subclass's.

    Raises, before training starts and beyond its parent's:
        NotImplementedError: a network without an encoder that gives feature maps.
        ValueError: feature stages that the encoder does not have.
    """

    settings_class = ContrastSettings
    config: ContrastSettings
    most_classes: int | None = 8  # of a step, see draw_classes; None for all
    # the student too, whose negatives reach no loss; encoding crops costs too much for that
    embeds_every_window = False

    def initialize(self) -> None:
        super().initialize()
        config, classes = self.config, self.label_manager.num_segmentation_heads
        self._embeds_crops = config.embedding == "crop"
        stages = (-1,) if self._embeds_crops else config.feature_stages
        # The teacher was copied from a student without hooks, so each keeps its own features.
        self.student_features = EncoderFeatures(self.student, stages)
        self.teacher_features = EncoderFeatures(self.teacher.module, stages)
        self.head = ProjectionHead(self.student_features.num_channels).to(self.device)
        self.teacher_head = EMATeacher(self.head, config.ema_decay)
        self.embed = self._embedder(self.student, self.head)
        self.teacher_embed = self._embedder(self.teacher.module, self.teacher_head)
        if self._embeds_crops:  # which need no features of whole images
            self.student_features.remove()
            self.teacher_features.remove()
        if self.is_ddp:
            self.embed = DistributedDataParallel(self.embed)
        self.optimizer.add_param_group({"params": list(self.head.parameters())})
        self.positives = ClassMemory(classes, config.memory_length).to(self.device)
        self.negatives = ClassMemory(classes, config.memory_length).to(self.device)
        self._window_statistics = self.compiled(window_statistics)
        self._sampled_info_nce = self.compiled(sampled_info_nce)
        guide: Any = GUIDES[config.guide]
        self.guide = guide(config.balanced_sides) if guide.two_sided else guide()
        # of its own, so that the mean teacher sees the same batches with the same seed
        self.window_generator = torch.Generator(self.device)
        self._said_nothing_to_contrast = False

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.window_generator.manual_seed(int(self._epoch_seeds(2)[1]))

    def _embedder(self, network: nn.Module, head: nn.Module) -> nn.Module:
        if not self._embeds_crops:
            return self.compiled(FeatureEmbedder(head))
        return CropEmbedder(self.compiled(network.encoder), head)

    def label_maps(self, target: list[Tensor]) -> Tensor:
        """Confidence maps (B, K, *spatial) of the labelled images: their labels."""
        return label_probabilities(
            target[0],
            self.label_manager.num_segmentation_heads,
            self.exclusive,
            self.label_manager.ignore_label,
        )

    def seen_by_student(self, images: Tensor, strong: Tensor) -> Seen:
        """What the student's pass over both parts of the batch leaves for the embedder."""
        both = torch.cat((images, strong))
        return both, [] if self._embeds_crops else self.student_features.take()

    def seen_by_teacher(
        self, images: Tensor, weak: Tensor, moved: Callable[[Tensor], Tensor]
    ) -> Seen:
        """The same of the teacher. The weak view went through it already; labelled images need its
        encoder only, up to the last stage that is pooled.

        Args:
            images: labelled, (B, C, *spatial).
            weak: unlabelled, (B', C, *spatial).
            moved: what the strong view went through: mixes or turns (B', C, *s) alike.
        """
        both = torch.cat((images, moved(weak)))
        if self._embeds_crops:
            return both, []
        of_weak = [[moved(stage) for stage in self.teacher_features.take()]] if len(weak) else []
        with torch.no_grad():
            parts = self.teacher_features.of(images), *of_weak
        return both, [torch.cat(stage) for stage in zip(*parts, strict=True)]

    def window_size(self, spatial: Sequence[int]) -> list[int]:
        """Edges of a window in a patch with edges ``spatial``, voxels."""
        fraction = self.config.window_fraction
        return [min(edge, max(MINIMUM_WINDOW, round(edge * fraction))) for edge in spatial]

    def draw_windows(self, teacher: Seen, confidence: Tensor, labelled: int = 0) -> Windows:
        """Draw windows of every class in every image (poster step 2).

        Args:
            teacher: images (B, C, *spatial) and the teacher's features.
            confidence: (B, K, *spatial).
            labelled: how many of the B, at the front, have their labels for confidence.
        """
        classes = draw_classes(confidence, self.most_classes, self.window_generator)
        confidence = of_classes(classes, confidence)
        per_map = self._per_map(confidence)
        statistics = self.statistics_of_windows(confidence, labelled)
        if not self.guide.needs_similarity:
            sides = 2 if self.guide.two_sided and self.config.balanced_sides else 1
            windows = self.guide(statistics, sides * per_map, generator=self.window_generator)
            return replace(windows, classes=classes)
        with torch.no_grad():
            embeddings = self.teacher_embed(*teacher, confidence, every_window(statistics))
        similarity = cosine_similarity(embeddings, of_classes(classes, self.positives.mean(), 0))
        windows = self.guide(statistics, per_map, similarity, self.window_generator)
        return replace(windows, classes=classes)

    def statistics_of_windows(self, confidence: Tensor, labelled: int) -> WindowStatistics:
        """Of all candidates, which lie a quarter of a window apart. Where each must be embedded
        first, for the cosine guide, they lie side by side: then the cost is bounded, whatever the
        embedder (ours). Arguments as in ``draw_windows``."""
        size = self.window_size(confidence.shape[2:])
        stride = size if self.guide.needs_similarity else None
        certain = 0 if self.label_manager.has_ignore_label else labelled
        statistics: WindowStatistics = self._window_statistics(confidence, size, stride, certain)
        return statistics

    def contrastive_loss(
        self, student: Seen, teacher: Seen, confidence: Tensor, windows: Windows
    ) -> Tensor:
        """InfoNCE of the student's windows against the memory of the teacher's (poster step 3).

        Args:
            student, teacher: images (B, C, *spatial) and features, of the strong and the weak
                view where there are two.
            confidence: (B, K, *spatial).
            windows: drawn from it.
        """
        confidence = of_classes(windows.classes, confidence)
        of_anchors = self.windows_of_anchors(windows)
        anchors = self.embed(*student, confidence, of_anchors)
        with torch.no_grad():
            self.remember(self.teacher_embed(*teacher, confidence, windows), windows)
        return self.info_nce(anchors, of_anchors)

    def windows_of_anchors(self, windows: Windows) -> Windows:
        """Those that the student embeds: the ones that may be anchors."""
        if self.embeds_every_window and not self._embeds_crops:
            return windows
        return windows.first(self._per_map(windows.valid))

    def _per_map(self, of_maps: Tensor) -> int:
        """Windows that may be positives for each of (B, K, ...) confidence maps; with
        ``balanced_sides`` they come first, and as many negatives follow."""
        images, classes = of_maps.shape[:2]
        return math.ceil(self.config.anchors / (images * classes))

    def patches_per_class(self, windows: Windows) -> Tensor:
        """(K,) valid positive windows of every class, 0 of those that the step left out."""
        number = windows.count()
        if windows.classes is None:
            return number
        of_all = number.new_zeros(self.label_manager.num_segmentation_heads)
        return of_all.index_copy(0, windows.classes, number)

    def remember(self, keys: Tensor, windows: Windows) -> None:
        """Put the teacher's embeddings (B, K, N, E) of the windows into the memory."""
        self.positives.enqueue(keys, windows.valid & windows.positive, windows.classes)
        if self.guide.two_sided and self.config.expectation == "sampled":
            self.negatives.enqueue(keys, windows.valid & ~windows.positive, windows.classes)

    def info_nce(self, anchors: Tensor, windows: Windows) -> Tensor:
        """Loss of the student's embeddings (B, K, N, E) of the windows against the memory."""
        is_anchor = windows.valid & windows.positive
        classes, config = windows.classes, self.config
        if config.expectation == "closed_form":
            mean, covariance = self.positives.moments()
            return closed_form_info_nce(
                anchors,
                is_anchor,
                of_classes(classes, mean, 0),
                of_classes(classes, covariance, 0),
                of_classes(classes, self.positives.filled().any(1), 0),
                config.temperature,
                config.covariance_scale * self.training_progress,
                config.negatives_per_class * (anchors.shape[1] - 1),
            )
        draws = config.memory_draws or None
        positives = self.positives.recall(draws, self.window_generator, classes)
        if self.guide.two_sided:
            negatives = self.negatives.recall(draws, self.window_generator, classes)
        else:
            negatives = positives.of_other_classes()
        return self._sampled_info_nce(
            anchors,
            is_anchor,
            positives.entries,
            positives.filled,
            negatives.entries,
            negatives.filled,
            config.temperature,
            negatives.weight,
            most_anchors=len(anchors) * self._per_map(anchors),
        )

    @property
    def contrastive_rampup(self) -> float:
        """Ramp of gamma at this iteration, from exp(-5) to 1."""
        return sigmoid_rampup(self.training_progress, self.config.contrastive_rampup_fraction)

    def finish_step(self, **given: Any) -> dict:
        report = super().finish_step(**given)
        if report["loss_contrastive"] == 0 and not self._said_nothing_to_contrast:
            self._said_nothing_to_contrast = True
            self.print_to_log_file(
                f"Epoch {self.current_epoch}, iteration {self.iteration_in_epoch}: the contrastive "
                f"loss is zero, as fewer than two classes have been seen so far. That is no "
                f"concern in the first iterations; if {log.PATCHES} stays 0 for all but one "
                f'class, look at the labels and at "window_fraction". Said only once.'
            )
        return report

    def update_teacher(self) -> None:
        super().update_teacher()
        self.teacher_head.update_parameters(self.head)

    def training_state(self) -> dict[str, Any]:
        modules = {name: module.state_dict() for name, module in self._contrast_modules().items()}
        return {**super().training_state(), **modules}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        for name, module in self._contrast_modules().items():
            module.load_state_dict(state[name])

    def _contrast_modules(self) -> dict[str, nn.Module]:
        return {
            "head": self.head,
            "teacher_head": self.teacher_head,
            "positives": self.positives,
            "negatives": self.negatives,
        }
