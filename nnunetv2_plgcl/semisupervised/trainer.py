"""What any teacher-student training on nnU-Net needs: loaders, teacher, stages, checkpoint, log.

It knows nothing of contrast. A method is a subclass with a ``train_step``.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
    NonDetMultiThreadedAugmenter,
)
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_plgcl.datasets.check import check_training
from nnunetv2_plgcl.datasets.files import read_split
from nnunetv2_plgcl.datasets.strict import require_replanned
from nnunetv2_plgcl.datasets.unlabelled import (
    UNLABELLED_IMAGES,
    preprocessed_cases,
    require_current,
    unlabelled_cases,
    unlabelled_folder,
)
from nnunetv2_plgcl.semisupervised import log
from nnunetv2_plgcl.semisupervised import state as states
from nnunetv2_plgcl.semisupervised.losses import consistency_loss, sigmoid_rampup
from nnunetv2_plgcl.semisupervised.mixing import CutMix
from nnunetv2_plgcl.semisupervised.targets import class_probabilities
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher, swap_weights
from nnunetv2_plgcl.semisupervised.unlabelled import UnlabelledDataset, unlabelled_dataset
from nnunetv2_plgcl.semisupervised.views import (
    WeakStrongViews,
    geometry_of,
    make_deterministic,
    strong_intensity,
)
from nnunetv2_plgcl.settings import config_from_plans

# Mixed precision overflows now and then and skips the step; this many in a row is no overflow.
NONFINITE_STEPS_ALLOWED = 20


class nnUNetTrainerSemiSupervised(nnUNetTrainer):
    """nnU-Net's trainer with a mean teacher and unlabelled cases, in two stages.

    Stage 1 (warm-up) trains on labelled cases alone with nnU-Net's full batch. In stage 2 a part
    of the batch is unlabelled: the student sees its strong view, the teacher its weak view.
    Iterations, plans, split, labelled augmentation and validation are nnU-Net's own.

    A subclass writes ``train_step`` from the named pieces here; ``fixed_config`` holds what the
    class itself stands for, as in ``nnUNetTrainerPLGCL_noWarmup``.

    Raises, before training starts:
        ValueError: no unlabelled case; a case both unlabelled and labelled or in validation;
            a batch that cannot be divided; a bad configuration; a foreign checkpoint.
        TypeError: a configuration value of the wrong type.
        FileNotFoundError: a configuration or an unlabelled case that was never preprocessed.
        NotImplementedError: cascades; data not preprocessed to Blosc2.
        RuntimeError: an unreadable checkpoint. During training: losses that stay NaN.
    """

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
        self.config = config_from_plans(self.configuration_manager.configuration, self.fixed_config)
        self.teacher: EMATeacher  # -> initialize
        self.dataloader_unlabelled: Any = None  # -> get_dataloaders
        self.iteration_in_epoch = 0
        self._nonfinite_steps = 0
        log.install(self.logger)

    # ---- set-up ------------------------------------------------------------------------------

    def initialize(self) -> None:
        if self.is_cascaded:
            raise NotImplementedError(
                f"Configuration {self.configuration_name} is the second stage of a cascade: it "
                f"needs the first stage's segmentation of every unlabelled case, which nnU-Net "
                f"does not write. Train 3d_fullres or 3d_lowres instead."
            )
        if not Path(self.preprocessed_dataset_folder).is_dir():
            raise FileNotFoundError(
                f"Nothing is preprocessed for configuration {self.configuration_name}: there is "
                f"no folder {self.preprocessed_dataset_folder}. Run: nnUNetv2_preprocess "
                f"-d {self.plans_manager.dataset_name[7:10]} -c {self.configuration_name} "
                f"-plans_name {self.plans_manager.plans_name}"
            )
        _seed_everything(self.config.seed)
        super().initialize()
        self.teacher = EMATeacher(self.student, self.config.ema_decay)
        self.teacher.module.decoder.deep_supervision = False  # type: ignore
        self._run_teacher = torch.compile(self.teacher) if self._do_i_compile() else self.teacher
        self._soft_dice = MemoryEfficientSoftDiceLoss(
            apply_nonlin=softmax_helper_dim1 if self.exclusive else torch.sigmoid,
            batch_dice=self.configuration_manager.batch_dice,
            do_bg=not self.exclusive,
            smooth=1e-5,
            ddp=self.is_ddp,
        )
        self.logger.update_config({"plgcl": asdict(self.config)})

    @property
    def student(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    @property
    def exclusive(self) -> bool:
        """Whether classes exclude one another (softmax) or are regions (sigmoid)."""
        return not self.label_manager.has_regions

    def _set_batch_size_and_oversample(self) -> None:
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
        if self.local_rank == 0:
            self._check_data()
        self.print_to_log_file(f"PLGCL configuration: {json.dumps(asdict(self.config))}")
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

    # ---- data --------------------------------------------------------------------------------

    def _open_unlabelled(self) -> UnlabelledDataset:
        base = Path(self.preprocessed_dataset_folder_base)
        splits_file = base / "splits_final.json"
        splits = read_split(splits_file)
        dataset_id = self.plans_manager.dataset_name[7:10]
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
        return unlabelled_dataset(
            unlabelled_cases(splits, self.fold, splits_file, dataset_id, images_un),
            images_un,
            Path(self.preprocessed_dataset_folder),
            folder_un,
            self.dataset_class,
            dataset_id,
            self.configuration_name,
            self.plans_manager.plans_name,
        )

    def _check_data(self) -> None:
        """As ``nnUNetv2_plgcl_check``. Errors stop the training, unless they rest on a guess from
        the names; those and warnings go to the log."""
        # do_split writes nnU-Net's own split where there is none; debug.json gets the attributes
        self.labelled_cases, _ = self.do_split()
        self.unlabelled_cases = list(self.dataset_unlabelled.identifiers)
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
        self._loaders_of_warmup = self.is_warmup
        self.batch_size = self.planned_batch_size if self.is_warmup else self.labelled_batch_size
        # online validation sees as many patches as with nnU-Net's own batch
        self.num_val_iterations_per_epoch = -(-self._validation_patches // self.batch_size)
        self.dataloader_unlabelled = None if self.is_warmup else self._unlabelled_loader()
        return super().get_dataloaders()

    def _unlabelled_loader(self) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
        patch_size = self.configuration_manager.patch_size
        use_mask_for_norm = self.configuration_manager.use_mask_for_norm
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        transforms = self.get_training_transforms(
            patch_size, rotation, None, mirror_axes, dummy_2d, use_mask_for_norm=use_mask_for_norm
        )
        views = WeakStrongViews(
            geometry_of(transforms),
            strong_intensity(patch_size, self.config.cutout_probability),
            [channel for channel, masked in enumerate(use_mask_for_norm) if masked],
        )
        loader = nnUNetDataLoader(
            self.dataset_unlabelled,
            self.planned_batch_size - self.labelled_batch_size,
            initial_patch_size,
            patch_size,
            self.label_manager,
            transforms=views,
        )
        loader.has_ignore = False  # no label, so no annotated region to sample from
        processes = get_allowed_n_proc_DA()
        if processes == 0:
            return SingleThreadedAugmenter(loader, None)
        return NonDetMultiThreadedAugmenter(
            loader,
            None,
            processes,
            num_cached=max(6, processes // 2),
            seeds=[int(seed) for seed in self._epoch_seeds(processes)],
            pin_memory=self.device.type == "cuda",
            wait_time=0.002,
        )

    @staticmethod
    def get_training_transforms(*args, **kwargs):
        return make_deterministic(nnUNetTrainer.get_training_transforms(*args, **kwargs))

    def _finish_loaders(self) -> None:
        for loader in (self.dataloader_train, self.dataloader_val, self.dataloader_unlabelled):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader._finish()

    def labelled_batch(self, batch: dict) -> tuple[Tensor, list[Tensor]]:
        """Move a labelled batch to the device.

        Returns:
            images (B, C, *spatial) and targets, one per resolution of deep supervision, the
            finest first.
        """
        target = batch["target"]
        target = target if isinstance(target, list) else [target]
        move = {"device": self.device, "non_blocking": True}
        return batch["data"].to(**move), [t.to(**move) for t in target]

    def unlabelled_views(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weak and strong view of the next unlabelled patches, both (B, C, *spatial); B = 0
        during warm-up. ``like`` is the labelled batch, (B, C, *spatial)."""
        if self.is_warmup:
            return like[:0], like[:0]
        both = next(self.dataloader_unlabelled)["data"].to(self.device, non_blocking=True)
        weak, strong = both.chunk(2, dim=1)
        return weak, strong

    # ---- stages and randomness ---------------------------------------------------------------

    @property
    def warmup_epochs(self) -> int:
        """Number of epochs of stage 1."""
        return round(self.config.warmup_fraction * self.num_epochs)

    @property
    def is_warmup(self) -> bool:
        return self.current_epoch < self.warmup_epochs

    @property
    def consistency_rampup(self) -> float:
        """Ramp of beta at this iteration: 0 in warm-up, then from exp(-5) to 1."""
        if self.is_warmup:
            return 0.0
        epochs = self.current_epoch - self.warmup_epochs
        epochs += self.iteration_in_epoch / self.num_iterations_per_epoch
        length = self.config.consistency_rampup_fraction * (self.num_epochs - self.warmup_epochs)
        return sigmoid_rampup(epochs, length)

    def _epoch_seeds(self, number: int) -> np.ndarray:
        entropy = (self.config.seed, self.current_epoch, self.local_rank)
        return np.random.SeedSequence(entropy).generate_state(number)

    def on_train_epoch_start(self) -> None:
        if self._loaders_of_warmup != self.is_warmup:
            self._finish_loaders()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        super().on_train_epoch_start()
        self.iteration_in_epoch = 0
        # each epoch has its own seed: a continued training needs no state of random generators
        _seed_everything(int(self._epoch_seeds(1)[0]))

    # ---- pieces of a train step --------------------------------------------------------------

    def autocast(self) -> AbstractContextManager:
        """Mixed precision on CUDA only, as in nnU-Net."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def pseudo_label(self, weak: Tensor) -> Tensor:
        """The teacher's confidence maps of the weak view (poster step 1).

        Args:
            weak: (B, C, *spatial).

        Returns:
            (B, K, *spatial) in [0, 1], without gradient.
        """
        if len(weak) == 0:
            return weak.new_zeros(0, self.label_manager.num_segmentation_heads, *weak.shape[2:])
        with torch.no_grad():
            return class_probabilities(self._run_teacher(weak), self.exclusive)

    def cutmix(self, strong: Tensor) -> CutMix:
        """What mixes the strong view (B, C, *spatial) and all that is aligned with it."""
        return CutMix(strong, self.config.cutmix_probability)

    def student_logits(self, images: Tensor) -> list[Tensor]:
        """One student pass, one output per resolution of deep supervision, the finest first."""
        output = self.network(images)
        return list(output) if isinstance(output, (list, tuple)) else [output]

    def supervised_loss(self, logits: list[Tensor], target: list[Tensor]) -> Tensor:
        """nnU-Net's own loss (poster step 5)."""
        if self.enable_deep_supervision:
            return self.loss(logits, target)
        return self.loss(logits[0], target[0])

    def consistency_loss(self, strong_logits: Tensor, pseudo_label: Tensor) -> Tensor:
        """Poster step 4, see ``losses.consistency_loss``."""
        config = self.config
        return consistency_loss(
            strong_logits,
            pseudo_label,
            config.consistency_target == "hard",
            self.exclusive,
            config.confidence_threshold,
            self._soft_dice if config.consistency_loss == "dice_cross_entropy" else None,
        )

    def optimise(self, loss: Tensor) -> None:
        """One optimiser step. nnUNetTrainer.train_step (nnU-Net 2.8.1) holds these lines between
        forward pass and return value, without a hook; a test compares them."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.optimizer.step()

    def update_teacher(self) -> None:
        """Poster step 6: the teacher follows the student."""
        self.teacher.update_parameters(self.student)

    def finish_step(self, patches_per_class: Tensor | None = None, **losses: Tensor) -> dict:
        """Count the iteration and bring what is logged to the host in one transfer.

        Args:
            patches_per_class: (K,) drawn patches, zeros where a method draws none.
            losses: ``loss`` (the total) and each of ``log.LOSSES`` that the method has.

        Returns:
            what ``nnUNetTrainer.train_step`` returns, with more keys.

        Raises:
            RuntimeError: the loss stays NaN or infinite.
        """
        rampup = self.consistency_rampup
        self.iteration_in_epoch += 1
        if patches_per_class is None:
            patches_per_class = torch.zeros(self.label_manager.num_segmentation_heads)
        scalars = torch.stack([loss.detach().float() for loss in losses.values()])
        values = torch.cat((scalars, patches_per_class.to(scalars))).cpu().numpy()
        report = dict(zip(losses, values, strict=False))
        self._refuse_nan(report)
        nothing = {name: np.float32(0) for name in log.LOSSES if name not in report}
        return {
            **report,
            **nothing,
            log.PATCHES: values[len(losses) :],
            "ema_decay": self.teacher.decay,
            "consistency_rampup": rampup,
        }

    def _refuse_nan(self, losses: dict[str, Any]) -> None:
        finite = all(np.isfinite(value) for value in losses.values())
        self._nonfinite_steps = 0 if finite else self._nonfinite_steps + 1
        if self._nonfinite_steps > (0 if self.grad_scaler is None else NONFINITE_STEPS_ALLOWED):
            named = ", ".join(f"{name} {value}" for name, value in losses.items())
            raise RuntimeError(
                f"The loss is not finite in epoch {self.current_epoch}, iteration "
                f"{self.iteration_in_epoch}: {named}. Checkpoints on disk are from before. Check "
                f"the images for NaN, or lower the weight of the part that is not finite (see "
                f"'plgcl' in the plans); then continue with --c."
            )

    # ---- log ---------------------------------------------------------------------------------

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        collated = collate_outputs(train_outputs)
        for key in (*log.LOSSES, *log.SHARES):
            self.logger.log(key, self._mean_over_ranks(collated[key]).item(), self.current_epoch)
        patches = self._mean_over_ranks(collated[log.PATCHES])
        self.logger.log(log.PATCHES, patches.tolist(), self.current_epoch)
        for key, name in log.LOSSES.items():
            value = self.logger.get_value(key, step=-1)
            self.print_to_log_file(f"{name}: {value:.4f}", also_print_to_console=False)

    def _mean_over_ranks(self, values: list | np.ndarray) -> np.ndarray:
        mean = np.mean(values, axis=0)
        if not self.is_ddp:
            return mean
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, mean)
        return np.mean(of_ranks, axis=0)

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
        with self.deployed_weights():
            super().perform_actual_validation(save_probabilities)

    # ---- checkpoint --------------------------------------------------------------------------

    def training_state(self) -> dict[str, Any]:
        """What a continued training needs beyond nnU-Net's keys. Subclasses add theirs."""
        return {"student": self.student.state_dict(), "teacher": self.teacher.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``training_state``."""
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with ``training_state`` under one extra key, written atomically."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        of_nnunet = io.BytesIO()
        super().save_checkpoint(of_nnunet)
        of_nnunet.seek(0)
        checkpoint = states.read_checkpoint(of_nnunet)
        state = self.training_state()
        if self.config.deployed_weights == "teacher":
            checkpoint["network_weights"] = self.teacher.module.state_dict()
        checkpoint[states.STATE_KEY] = state
        states.write_atomically(checkpoint, filename)
        if Path(filename).name == "checkpoint_best.pth":
            self._make_latest(Path(filename))

    @staticmethod
    def _make_latest(best: Path) -> None:
        """--c prefers checkpoint_latest.pth, however old: let the newest be called so."""
        latest, temporary = best.with_name("checkpoint_latest.pth"), Path(f"{best}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(best, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(best, temporary)
        os.replace(temporary, latest)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:  # type: ignore[override]
        """Continue exactly where the checkpoint was written.

        Raises:
            RuntimeError: the file is damaged.
            ValueError: it belongs to another trainer, configuration, plans or dataset.
        """
        checkpoint = states.read_checkpoint(filename_or_checkpoint)
        expected = {
            "trainer_name": type(self).__name__,
            "configuration": self.configuration_name,
            "plans_name": self.plans_manager.plans_name,
            "dataset_name": self.plans_manager.dataset_name,
        }
        states.check_origin(checkpoint, expected, filename_or_checkpoint)
        super().load_checkpoint(filename_or_checkpoint)
        self.load_training_state(checkpoint[states.STATE_KEY])

    def on_train_end(self) -> None:
        super().on_train_end()
        self._finish_loaders()


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
