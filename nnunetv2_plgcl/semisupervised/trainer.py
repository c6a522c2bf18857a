"""The life of a semi-supervised training on nnU-Net: set-up, stages, epochs, checkpoints.

It knows nothing of contrast. A method is a subclass with a ``train_step``, written from the pieces
in ``step.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from torch import distributed as dist
from torch import nn

from nnunetv2_plgcl.datasets.check import check_training
from nnunetv2_plgcl.datasets.description import class_names
from nnunetv2_plgcl.datasets.files import dataset_number, read_split
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.preprocessed import require_no_other_files
from nnunetv2_plgcl.datasets.strict import require_replanned
from nnunetv2_plgcl.datasets.unlabelled import (
    UNLABELLED_IMAGES,
    preprocessed_cases,
    require_current,
    unlabelled_cases,
    unlabelled_folder,
)
from nnunetv2_plgcl.record import write_record
from nnunetv2_plgcl.semisupervised import cascade, loaders, log
from nnunetv2_plgcl.semisupervised.nonfinite import SkippedSteps
from nnunetv2_plgcl.semisupervised.ranks import on_first_rank, require_even_batch
from nnunetv2_plgcl.semisupervised.resume import ResumableTraining
from nnunetv2_plgcl.semisupervised.settings import SemiSupervisedSettings, StrongViewSettings
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher, swap_weights
from nnunetv2_plgcl.semisupervised.views import (
    WeakStrongViews,
    geometry_of,
    make_deterministic,
    marking_outside,
    strong_intensity,
)
from nnunetv2_plgcl.settings import left_aside, read_settings
from nnunetv2_plgcl.trainers import known_settings


class nnUNetTrainerSemiSupervised(ResumableTraining):
    """nnU-Net's trainer with a mean teacher and unlabelled cases, in two stages.

    Stage 1 (warm-up) trains on labelled cases alone with nnU-Net's full batch. In stage 2 a part
    of the batch is unlabelled: the student sees its strong view, the teacher its weak view.
    Iterations, plans, split, labelled augmentation and validation are nnU-Net's own, but patches
    are drawn onto foreground with a probability, as in ``nnUNetTrainer_probabilisticOversampling``.

    A subclass writes ``train_step`` from the named pieces of ``SemiSupervisedStep``;
    ``settings_class`` declares what it can be told in the plans, ``fixed_config`` holds what the
    class itself stands for, as in ``nnUNetTrainerPLGCL_noWarmup``.

    Raises, before training starts:
        ValueError: no unlabelled case; a case both unlabelled and labelled or in validation;
            a batch that cannot be divided; a bad configuration; a foreign checkpoint, or one
            of other cases or settings.
        TypeError: a configuration value of the wrong type.
        FileNotFoundError: a configuration or an unlabelled case that was never preprocessed; a
            case without a segmentation by the first stage of a cascade.
        NotImplementedError: data not preprocessed to Blosc2.
        RuntimeError: an unreadable checkpoint; another training in the same folder. During
            training: a loss or gradient that is not finite; many unlabelled cases that cannot be
            read any more.
    """

    settings_class: ClassVar[type[SemiSupervisedSettings]] = SemiSupervisedSettings
    fixed_config: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.config = read_settings(
            self.settings_class,
            self.configuration_manager.configuration,
            self.fixed_config,
            known_settings,
        )
        self.dataloader_unlabelled = None  # -> get_dataloaders
        self.iteration_in_epoch = 0
        self.skipped_steps = SkippedSteps()
        self._cases: dict[str, list[str]] = {}
        self.unreadable_cases: dict[str, str] = {}
        self.gradient_norms: list[torch.Tensor] = []
        log.install(self.logger)

    # ---- set-up ------------------------------------------------------------------------------

    def initialize(self) -> None:
        if not Path(self.preprocessed_dataset_folder).is_dir():
            raise FileNotFoundError(
                f"Nothing is preprocessed for configuration {self.configuration_name}: there is "
                f"no folder {self.preprocessed_dataset_folder}. Run: nnUNetv2_preprocess "
                f"-d {dataset_number(self.plans_manager.dataset_name)} "
                f"-c {self.configuration_name} -plans_name {self.plans_manager.plans_name}"
            )
        require_no_other_files(Path(self.preprocessed_dataset_folder))
        _seed_everything(self.config.seed)
        super().initialize()
        self.further_modules: dict[str, nn.Module] = {}  # what learns beside the network
        self.teacher = EMATeacher(self.student, self.config.ema_decay)
        self.teacher.module.decoder.deep_supervision = False  # type: ignore
        self._run_teacher = self.compiled(self.teacher)
        self.logger.update_config({"plgcl": asdict(self.config)})

    def _set_batch_size_and_oversample(self) -> None:
        if self.is_ddp and self.configuration_manager.batch_dice:
            require_even_batch(self.configuration_manager.batch_size, dist.get_world_size())
        super()._set_batch_size_and_oversample()
        size = self.batch_size
        if size < 2:
            raise ValueError(
                f"The batch size of configuration {self.configuration_name} is {size} per GPU: it "
                f'cannot be divided into labelled and unlabelled patches. Set "batch_size" to at '
                f'least 2 per GPU in the plans, with a smaller "patch_size" if memory is short.'
            )
        self.planned_batch_size = size
        self._validation_patches = self.num_val_iterations_per_epoch * size
        labelled = round(size * self.config.labelled_fraction)
        self.labelled_batch_size = min(max(labelled, 1), size - 1)
        # nnU-Net forces the last third of a batch onto foreground. In a divided batch that share
        # would be rounded differently, so keep the share of the planned batch in expectation.
        forced = size - round(size * (1 - self.oversample_foreground_percent))
        self.oversample_foreground_percent: float = forced / size
        self.probabilistic_oversampling = True

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self.dataset_unlabelled = self._open_unlabelled()
        # do_split writes nnU-Net's own split where there is none
        labelled, validation = self.do_split()
        unlabelled = list(self.dataset_unlabelled.identifiers)
        cascade.require_first_stage(self, [*labelled, *validation], unlabelled)
        self._note({"labelled": labelled, "validation": validation, "unlabelled": unlabelled})
        on_first_rank(self._check_data)
        self.print_to_log_file(f"PLGCL configuration: {json.dumps(asdict(self.config))}")
        others = left_aside(self.settings_class, self.configuration_manager.configuration)
        if others:
            self.print_to_log_file(f"Settings of other trainers, left aside: {', '.join(others)}.")
        self.print_to_log_file(
            f"{len(self.dataset_unlabelled.identifiers)} unlabelled cases. {self.warmup_epochs} of "
            f"{self.num_epochs} epochs are warm-up with {self.planned_batch_size} labelled patches "
            f"a batch, the others have {self.labelled_batch_size} labelled and "
            f"{self.planned_batch_size - self.labelled_batch_size} unlabelled ones."
        )
        if self.teacher.n_averaged == 0:
            # pretrained weights are loaded after initialize()
            self.teacher.module.load_state_dict(self.student.state_dict())
        super().on_train_start()
        if self.local_rank == 0:
            write_record(Path(self.output_folder), self._record)

    # ---- data --------------------------------------------------------------------------------

    def _open_unlabelled(self) -> loaders.UnlabelledDataset:
        base = Path(self.preprocessed_dataset_folder_base)
        splits_file = base / "splits_final.json"
        splits = read_split(splits_file, self.fold)
        dataset_id = dataset_number(self.plans_manager.dataset_name)
        folder_un = unlabelled_folder(base, self.configuration_manager.data_identifier)
        if nnUNet_raw.is_set():
            raw = Path(nnUNet_raw) / self.plans_manager.dataset_name
            require_replanned(raw, base, Path(self.preprocessed_dataset_folder))
            require_current(
                folder_un,
                self.plans_manager.plans,
                self.configuration_name,
                raw / UNLABELLED_IMAGES,
                self.dataset_json["file_ending"],
            )
        images_un = preprocessed_cases(folder_un)
        return loaders.unlabelled_dataset(
            unlabelled_cases(splits, self.fold, splits_file, dataset_id, images_un),
            images_un,
            Path(self.preprocessed_dataset_folder),
            folder_un,
            self.dataset_class,
            dataset_id,
            self.configuration_name,
            self.plans_manager.plans_name,
            cascade.of_unlabelled(self),
        )

    def _check_data(self) -> None:
        """As ``nnUNetv2_plgcl_check``. Errors stop the training, unless they rest on a guess from
        the names; those and warnings go to the log."""
        findings = check_training(
            self.plans_manager.plans,
            self.dataset_json,
            self.configuration_name,
            self.fold,
            processes=default_num_processes,
        )
        for finding in findings:
            self.print_to_log_file(f"{finding.level}: {finding.text}")
        errors = [f.text for f in findings if f.level == "error" and f.certain]
        if errors:
            raise ValueError(" ".join(errors))

    def get_dataloaders(self):
        """nnU-Net's loaders at the stage's labelled batch size, and the unlabelled loader."""
        self._stage_of_loaders = self.stage
        self.batch_size = self.planned_batch_size if self.is_warmup else self.labelled_batch_size
        # online validation sees as many patches as with nnU-Net's own batch
        self.num_val_iterations_per_epoch = -(-self._validation_patches // self.batch_size)
        if self.is_warmup:
            self.dataloader_unlabelled = None
            return super().get_dataloaders()
        unlabelled = self.planned_batch_size - self.batch_size
        workers, of_unlabelled = loaders.divide_workers(self.batch_size, unlabelled)
        self.dataloader_unlabelled = self._unlabelled_loader(of_unlabelled)
        with loaders.workers_of_nnunet(workers):
            return super().get_dataloaders()

    def _unlabelled_loader(self, workers: int) -> Any:
        patch_size = self.configuration_manager.patch_size
        use_mask_for_norm = self.configuration_manager.use_mask_for_norm
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        transforms = self.get_training_transforms(
            patch_size,
            rotation,
            mirror_axes=mirror_axes,
            do_dummy_2d_data_aug=dummy_2d,
            use_mask_for_norm=use_mask_for_norm,
            is_cascaded=self.is_cascaded,
            foreground_labels=self.label_manager.foreground_labels,
            **self._unlabelled_target_transforms(),
        )
        masked = self.masked_channels
        config = self.config
        cutout = config.cutout_probability if isinstance(config, StrongViewSettings) else 0
        views = WeakStrongViews(
            geometry_of(transforms) if self.strong_views else marking_outside(transforms, masked),
            strong_intensity(patch_size, cutout),
            masked,
            self.strong_views,
            self.image_channels,
        )
        return loaders.unlabelled_loader(
            self._unlabelled_for_loader(),
            self.planned_batch_size - self.labelled_batch_size,
            initial_patch_size,
            patch_size,
            self.label_manager,
            views,
            self._epoch_seeds,
            workers,
            pin_memory=self.device.type == "cuda",
            foreground_share=self.foreground_share,
        )

    @property
    def foreground_share(self) -> float:
        """Share of the unlabelled patches that the loader centres on what the dataset takes for
        foreground; in an unlabelled case there is none."""
        return 0.0

    def _unlabelled_for_loader(self) -> loaders.UnlabelledDataset:
        """The dataset that the unlabelled loader draws from. Methods that store pseudo-labels
        return one with them."""
        return self.dataset_unlabelled

    def _unlabelled_target_transforms(self) -> dict[str, Any]:
        """What nnU-Net's transforms make of stored pseudo-labels; there are none here."""
        return {"deep_supervision_scales": None}

    def heed_unreadable(self, unreadable: Mapping[str, str]) -> None:
        """Log unlabelled cases that cannot be read any more; end the training when they are too
        many.

        Raises:
            RuntimeError: too many, see ``loaders.too_many_gone``.
        """
        new = {case: why for case, why in unreadable.items() if case not in self.unreadable_cases}
        self.unreadable_cases.update(new)
        total, gone = len(self.dataset_unlabelled.identifiers), len(self.unreadable_cases)
        for case, why in new.items():
            self.print_to_log_file(
                f"Unlabelled case {case} cannot be read any more and is skipped from now on: "
                f"{why}. {gone} of {total} are gone."
            )
        if not loaders.too_many_gone(gone, total):
            return
        raise RuntimeError(
            f"{gone} of {total} unlabelled cases cannot be read any more: "
            f"{some(list(self.unreadable_cases))}. Is a disk full, or a network drive gone? The "
            f"training is kept in checkpoint_latest.pth: bring them back and continue with --c."
        )

    # static in nnU-Net, which calls it on the trainer; not here, where others may stand in between
    def get_training_transforms(self, *args, **kwargs):  # type: ignore[override]
        return make_deterministic(super().get_training_transforms(*args, **kwargs))

    # ---- epochs ------------------------------------------------------------------------------

    @property
    def warmup_epochs(self) -> int:  # type: ignore[override]
        """Number of epochs of stage 1."""
        return round(self.config.warmup_fraction * self.num_epochs)

    def _epoch_seeds(self, number: int) -> np.ndarray:
        entropy = (self.config.seed, self.current_epoch, self.local_rank)
        return np.random.SeedSequence(entropy).generate_state(number)

    def on_train_epoch_start(self) -> None:
        if self._stage_of_loaders != self.stage:
            self._finish_loaders()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        super().on_train_epoch_start()
        self.iteration_in_epoch = 0
        # each epoch has its own seed: a continued training needs no state of random generators
        _seed_everything(int(self._epoch_seeds(1)[0]))

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        losses, shares = log.log_epoch(self.logger, train_outputs, self.current_epoch)
        for key, name in log.LOSSES.items():
            self.print_to_log_file(f"{name}: {losses[key]:.4f}", also_print_to_console=False)
        skipped = round(sum(output[log.SKIPPED] for output in train_outputs))
        if skipped:
            self.print_to_log_file(
                f"{skipped} of {len(train_outputs)} steps were skipped, as the gradient was not "
                f"finite. Cases in most such batches: {self.skipped_steps.suspects()}."
            )
        self._say_if_collapsed(log.the_only_class(shares))

    def _say_if_collapsed(self, only: int | None) -> None:
        if only is None or self.said_collapsed:
            return
        self.said_collapsed = True
        names = ["background", *class_names(self.dataset_json)]
        self.print_to_log_file(
            f"warning: all pseudo-labels of epoch {self.current_epoch} are {names[only]}, so "
            f"unlabelled cases teach nothing. Look at the labels, and at the share of the largest "
            f'class in progress.png; a longer warm-up ("warmup_fraction") may help. Said only once.'
        )

    def on_train_end(self) -> None:
        super().on_train_end()
        self._finish_loaders()

    # ---- deployed weights: what is validated and stored as network_weights --------------------

    @contextmanager
    def deployed_weights(self) -> Iterator[None]:
        """Inside, ``self.network`` computes with the weights that will be deployed."""
        deploys_teacher = self.config.deployed_weights == "teacher"
        if deploys_teacher:
            swap_weights(self.student, self.teacher.module)
        try:
            yield
        finally:
            if deploys_teacher:
                swap_weights(self.student, self.teacher.module)

    def validation_step(self, batch: dict) -> dict:
        with self.deployed_weights():
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with self._alone(), self.deployed_weights():
            super().perform_actual_validation(save_probabilities)
            if self.configuration_manager.next_stage_names:
                cascade.predict_for_next_stages(self, self._open_unlabelled())


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
