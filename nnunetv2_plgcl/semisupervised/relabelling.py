"""A second stage in which unlabelled patches carry pseudo-labels of whole volumes, renewed a few
times by the teacher."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import distributed as dist

from nnunetv2_plgcl.semisupervised import volumes
from nnunetv2_plgcl.semisupervised.loaders import UnlabelledDataset
from nnunetv2_plgcl.semisupervised.losses import label_manager_with_ignore
from nnunetv2_plgcl.semisupervised.settings import SemiSupervisedSettings
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.settings import setting
from nnunetv2_plgcl.workers import one_line


@dataclass(frozen=True)
class VolumeSettings(SemiSupervisedSettings):
    """When volumes are labelled anew and what is filtered."""

    refreshes: int = setting(
        4, "times in the second stage that the teacher labels every unlabelled volume [ours]", 1
    )
    component_filter: str = setting(
        "auto",
        "keep the largest component of a volume's foreground; auto: if every labelled case has but "
        "one [rule: nnU-Net's postprocessing; use: ours]",
        choices=("auto", "largest", "none"),
    )
    island_share: float = setting(
        0.0,
        "share of the unlabelled patches that are centred on a removed voxel, where their volume "
        "has one [ours]",
        0,
        1,
    )
    volume_mirroring: bool = setting(
        False, "average over mirrored images; takes 2 (one axis) to 8 times as long [ours]"
    )


class nnUNetTrainerRelabelling(nnUNetTrainerSemiSupervised):
    """Serves stored pseudo-labels of volumes as ``unlabelled_batch(...).target``.

    At equal distances in the second stage the teacher predicts every unlabelled volume with
    nnU-Net's own predictor; a volume shows false islands, which are removed. Labels are stored with
    the training's results, so that trainings do not disturb one another and the preprocessed data
    stay as they are. They are named after their epoch, and what was interrupted is made again by
    the same weights: a continued training repeats an undisturbed one.
    """

    config: VolumeSettings

    def initialize(self) -> None:
        super().initialize()
        self.pseudo_label_manager = label_manager_with_ignore(self)

    @property
    def least_confidence(self) -> float:
        """Of a voxel's decision; the stored label ignores what has less."""
        return 0.0

    @property
    def labels_volumes(self) -> bool:
        """Whether anything is gained by it."""
        return True

    def on_train_start(self) -> None:
        if self.local_rank == 0:  # an earlier training's, or from after the checkpoint
            volumes.discard(self._labels_folder, self.current_epoch)
        self._barrier()
        super().on_train_start()
        if not self.labels_volumes:
            return
        shapes = [
            self.dataset_unlabelled.load_case(case)[0].shape[1:]
            for case in self.dataset_unlabelled.identifiers
        ]
        passes = sum(_patches(s, self.configuration_manager.patch_size) for s in shapes)
        if self.config.volume_mirroring:
            passes *= 2 ** len(self.inference_allowed_mirroring_axes or ())
        self.print_to_log_file(
            f"The teacher labels {len(shapes)} volumes before epochs {self.refresh_epochs}: "
            f"{passes} patches each time, where an epoch trains "
            f"{self.num_iterations_per_epoch * self.planned_batch_size}. At most "
            f"{sum(map(volumes.most_bytes, shapes)) * len(self.refresh_epochs) / 2**20:.0f} MiB in "
            f"{self._labels_folder}."
        )

    @property
    def refresh_epochs(self) -> list[int]:
        """Epochs before which volumes are labelled."""
        length = self.num_epochs - self.warmup_epochs
        times = self.config.refreshes
        return sorted({self.warmup_epochs + i * length // times for i in range(times)})

    @property
    def stage(self) -> int:
        """0 in warm-up, then how often the volumes were labelled."""
        if not self.labels_volumes:
            return super().stage
        return sum(epoch <= self.current_epoch for epoch in self.refresh_epochs)

    @property
    def _labels_folder(self) -> Path:
        return Path(self.output_folder) / "pseudo_labels"

    @property
    def foreground_share(self) -> float:
        return self.config.island_share if self.labels_volumes else super().foreground_share

    def _unlabelled_target_transforms(self) -> dict[str, Any]:
        if not self.labels_volumes:
            return super()._unlabelled_target_transforms()
        manager = self.pseudo_label_manager
        return {
            "deep_supervision_scales": self._get_deep_supervision_scales(),
            "regions": manager.foreground_regions if manager.has_regions else None,
            "ignore_label": manager.ignore_label,
        }

    def _unlabelled_for_loader(self) -> UnlabelledDataset:
        if not self.labels_volumes:
            return super()._unlabelled_for_loader()
        folder = volumes.folder_of_epoch(self._labels_folder, self.refresh_epochs[self.stage - 1])
        if not folder.is_dir():
            self._label_volumes(folder)
        return volumes.PseudoLabelledDataset(
            self.dataset_unlabelled.folders, folder, self.dataset_unlabelled.previous
        )

    def _label_volumes(self, folder: Path) -> None:
        begun = time.time()
        keep_largest = self.keeps_largest
        predictor = nnUNetPredictor(
            use_mirroring=self.config.volume_mirroring, device=self.device, allow_tqdm=False
        )
        predictor.manual_initialization(
            self.teacher.module,
            self.plans_manager,
            self.configuration_manager,
            None,
            self.dataset_json,
            type(self).__name__,
            self.inference_allowed_mirroring_axes,
        )

        def label(case: str) -> volumes.VolumeLabel | None:
            self.stop_if_asked()  # many volumes take longer than a scheduler waits
            try:
                image = volumes.image_of(
                    self.dataset_unlabelled, case, self.label_manager.foreground_labels
                )
            except Exception as error:  # what Blosc2 raises depends on the damage
                self.heed_unreadable({case: one_line(error)})
                return None
            logits = predictor.predict_sliding_window_return_logits(image).cpu()
            return volumes.volume_label(
                logits, self.pseudo_label_manager, keep_largest, self.least_confidence
            )

        ranks = dist.get_world_size() if self.is_ddp else 1
        mine = self.dataset_unlabelled.identifiers[self.local_rank :: ranks]
        volumes.write_labels(folder, {case: partial(label, case) for case in mine})
        self._barrier()
        if self.local_rank == 0:
            volumes.publish(folder)
        self._barrier()
        self.print_to_log_file(
            f"The teacher labelled {len(self.dataset_unlabelled.identifiers)} volumes in "
            f"{time.time() - begun:.0f} s. Components of the foreground other than the largest "
            f"{'were removed' if keep_largest else 'stay'}."
        )

    @cached_property
    def keeps_largest(self) -> bool:
        """Whether components of the foreground other than the largest are taken for islands."""
        if self.config.component_filter != "auto":
            return self.config.component_filter == "largest"
        labelled, _ = self.get_tr_and_val_datasets()
        foreground = [label for label in self.label_manager.all_labels if label > 0]
        return volumes.is_connected(
            np.isin(labelled.load_case(case)[1][0], foreground) for case in labelled.identifiers
        )

    def _barrier(self) -> None:
        if self.is_ddp:
            dist.barrier()


def _patches(shape: tuple[int, ...], patch_size: tuple[int, ...]) -> int:
    """Of nnU-Net's sliding window over a volume; in 2D over each of its slices."""
    slices = shape[: len(shape) - len(patch_size)]
    size = [max(a, b) for a, b in zip(shape[len(slices) :], patch_size, strict=True)]
    steps = compute_steps_for_sliding_window(size, patch_size, 0.5)
    return math.prod((*slices, *map(len, steps)))
