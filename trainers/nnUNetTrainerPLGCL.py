from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from nnunetv2_plgcl.contrast.trainer import ContrastSettings, nnUNetTrainerContrast
from nnunetv2_plgcl.semisupervised.components import near
from nnunetv2_plgcl.semisupervised.mixing import copy_paste
from nnunetv2_plgcl.semisupervised.relabelling import VolumeSettings, nnUNetTrainerRelabelling
from nnunetv2_plgcl.semisupervised.step import UnlabelledBatch
from nnunetv2_plgcl.semisupervised.targets import (
    background_where,
    foreground,
    ignored_voxels,
)
from nnunetv2_plgcl.settings import setting
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import MeanTeacherSettings
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


@dataclass(frozen=True)
class PLGCLSettings(VolumeSettings, ContrastSettings, MeanTeacherSettings):
    """Those of contrast and mean teacher, and how volumes clean the pseudo-labels."""

    earlier: ClassVar[Mapping[str, Any]] = {
        "warmup_copy_paste": False,
        "component_filter": "none",
        "memory_length": 4096,
        "memory_draws": 0,
    }

    warmup_copy_paste: bool = setting(
        True, "in warm-up, a box of another labelled patch lies in each [BCP]"
    )
    volume_margin: int = setting(
        4,
        "voxels around a volume's foreground where a pseudo-label may have some too; along axes of "
        "larger spacing fewer [ours]",
        0,
    )


class nnUNetTrainerPLGCL(nnUNetTrainerRelabelling, nnUNetTrainerPLGCL_poster):
    """Pseudo-label Guided Contrastive Learning (Basak & Yin, CVPR 2023) on volumes.

    The poster's six steps as in ``nnUNetTrainerPLGCL_poster``, on pseudo-labels without islands: a
    patch, and a slice even more, does not show that a structure lies apart from its organ, so
    training on the teacher's pseudo-labels confirms it. Here the teacher predicts every unlabelled
    volume a few times in the second stage; away from the largest component of its foreground all
    pseudo-labels become background. Consistency and contrast learn from what is left. Nothing is
    removed from volumes where the teacher finds no foreground, which it may have missed, and from
    any volume where the foreground of labelled cases is not one component. Source: the filter is
    ours, with the rule of nnU-Net's postprocessing. The warm-up is BCP's (Bai et al., CVPR 2023): a
    box of another labelled patch lies in each.
    """

    settings_class = PLGCLSettings
    config: PLGCLSettings
    most_classes = nnUNetTrainerContrast.most_classes
    embeds_every_window = nnUNetTrainerContrast.embeds_every_window

    def labelled_batch(self, batch: dict) -> tuple[Tensor, list[Tensor]]:
        """As the parent's; in warm-up with a box of another patch in each."""
        images, target = super().labelled_batch(batch)
        if self.is_warmup and self.config.warmup_copy_paste:
            return copy_paste(images, target)
        return images, target

    @property
    def labels_volumes(self) -> bool:
        return self.keeps_largest and self.warmup_epochs > 0

    def _unlabelled_target_transforms(self) -> dict[str, Any]:
        # the stored label is looked at in full resolution, it is no target
        return {**super()._unlabelled_target_transforms(), "deep_supervision_scales": None}

    def pseudo_label_of(self, unlabelled: UnlabelledBatch) -> Tensor:
        """The teacher's confidence maps (B, K, *spatial) of the weak view, without islands."""
        maps = super().pseudo_label_of(unlabelled)
        if len(maps) == 0 or not self.labels_volumes:
            return maps
        classes, target = self.label_manager.num_segmentation_heads, unlabelled.target[0]
        unknown = ignored_voxels(target, classes, self.exclusive)
        found = foreground(target, classes, self.exclusive)
        away = ~(near(found, self.margin) | unknown)
        return background_where(maps, away, self.exclusive)

    @property
    def margin(self) -> list[int]:
        """``volume_margin`` along each axis of a patch, in voxels."""
        spacing = self.configuration_manager.spacing
        return [round(self.config.volume_margin * min(spacing) / edge) for edge in spacing]
