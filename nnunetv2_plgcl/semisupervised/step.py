"""The pieces that a semi-supervised ``train_step`` is written from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_plgcl.semisupervised import log
from nnunetv2_plgcl.semisupervised.losses import sigmoid_rampup
from nnunetv2_plgcl.semisupervised.nonfinite import SkippedSteps, gradient_norm
from nnunetv2_plgcl.semisupervised.settings import ConsistencySettings, SemiSupervisedSettings
from nnunetv2_plgcl.semisupervised.spatial import SpatialView
from nnunetv2_plgcl.semisupervised.targets import class_probabilities, class_shares
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher


class UnlabelledBatch(NamedTuple):
    """Unlabelled patches of one step, on the device; B = 0 during warm-up.

    Attributes:
        weak: (B, C, *spatial), what the teacher sees.
        strong: the same patches with other intensities, (B, C, *spatial) each.
        target: stored pseudo-labels, one a resolution of deep supervision, (B, 1, *s) each;
            placeholders where a method stores none.
    """

    weak: Tensor
    strong: tuple[Tensor, ...]
    target: list[Tensor]


class SemiSupervisedStep(nnUNetTrainer):
    """nnU-Net's trainer with the named steps of teacher and student; a method's ``train_step``
    calls them one after the other. Set-up, data and checkpoints are the subclass's."""

    config: SemiSupervisedSettings
    teacher: EMATeacher
    dataloader_unlabelled: Any
    iteration_in_epoch: int
    warmup_epochs: int
    skipped_steps: SkippedSteps
    _cases: dict[str, list[str]]  # of the batch, by part
    gradient_norms: list[Tensor]  # of the step's optimisers

    # ---- data --------------------------------------------------------------------------------

    def labelled_batch(self, batch: dict) -> tuple[Tensor, list[Tensor]]:
        """Move a labelled batch to the device.

        Returns:
            images (B, C, *spatial) and targets, one per resolution of deep supervision, the
            finest first.
        """
        self._cases = {"labelled": list(batch["keys"])}
        return self._to_device(batch)

    def unlabelled_batch(self, like: Tensor) -> UnlabelledBatch:
        """The next unlabelled patches. ``like`` is the labelled batch, (B, C, *spatial)."""
        if self.is_warmup:
            return UnlabelledBatch(like[:0], (like[:0],) * self.strong_views, [like[:0, :1]])
        batch = next(self.dataloader_unlabelled)
        self.heed_unreadable(batch["unreadable"])
        views, target = self._to_device(batch)
        self._cases["unlabelled"] = list(batch["keys"])
        weak, *strong = views.chunk(1 + self.strong_views, dim=1)
        return UnlabelledBatch(weak, tuple(strong), target)

    def heed_unreadable(self, unreadable: Mapping[str, str]) -> None:
        """What becomes of cases that the loader went on without. ``unreadable``: their errors."""
        raise NotImplementedError

    def _to_device(self, batch: dict) -> tuple[Tensor, list[Tensor]]:
        target = batch["target"]
        target = target if isinstance(target, list) else [target]
        move = {"device": self.device, "non_blocking": True}
        return batch["data"].to(**move), [t.to(**move) for t in target]

    def unlabelled_views(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weak and strong view of the next unlabelled patches, both (B, C, *spatial); B = 0
        during warm-up. ``like`` is the labelled batch, (B, C, *spatial)."""
        batch = self.unlabelled_batch(like)
        return batch.weak, batch.strong[0]

    def spatial_view(self, like: Tensor) -> SpatialView:
        """Rotations and flips of patches (B, C, *spatial), as far as nnU-Net mirrors this data."""
        return SpatialView(
            like, self.configuration_manager.spacing, self.inference_allowed_mirroring_axes
        )

    # ---- stages ------------------------------------------------------------------------------

    # Of each unlabelled patch. Without any, the student itself sees the weak view, which then has
    # nnU-Net's whole augmentation, as labelled patches have.
    strong_views: int = 1

    @property
    def is_warmup(self) -> bool:
        return self.current_epoch < self.warmup_epochs

    @property
    def stage(self) -> int:
        """Loaders are made anew when it changes: 0 in warm-up, 1 in the second stage."""
        return int(not self.is_warmup)

    @property
    def training_progress(self) -> float:
        """Share of the training that has passed, 0 to 1."""
        epochs = self.current_epoch + self.iteration_in_epoch / self.num_iterations_per_epoch
        return epochs / self.num_epochs

    @property
    def consistency_rampup(self) -> float:
        """Ramp of beta at this iteration: 0 in warm-up, then from exp(-5) to 1; at once 1 where a
        method has no beta."""
        if self.is_warmup:
            return 0.0
        if not isinstance(self.config, ConsistencySettings):
            return 1.0
        epochs = self.current_epoch - self.warmup_epochs
        epochs += self.iteration_in_epoch / self.num_iterations_per_epoch
        length = self.config.consistency_rampup_fraction * (self.num_epochs - self.warmup_epochs)
        return sigmoid_rampup(epochs, length)

    def require_two_unlabelled(self, because: str) -> None:
        """For methods that need them; ``because`` says what for.

        Raises:
            ValueError: a batch has one unlabelled patch.
        """
        if self._has_one_unlabelled:
            raise ValueError(f"{because}, but {self._more_unlabelled}")

    def warn_of_one_unlabelled(self, because: str) -> None:
        """For methods that lose a part of theirs with one; ``because`` says which."""
        if self._has_one_unlabelled:
            self.print_to_log_file(f"warning: {because}, but {self._more_unlabelled}")

    @property
    def _has_one_unlabelled(self) -> bool:
        return self.planned_batch_size - self.labelled_batch_size < 2

    @property
    def _more_unlabelled(self) -> str:
        return (
            f"configuration {self.configuration_name} has one in a batch of "
            f'{self.planned_batch_size}. Raise "batch_size", or lower "labelled_fraction" '
            f"(now {self.config.labelled_fraction}) in the plans, so that at least two are "
            f"unlabelled."
        )

    # ---- networks ----------------------------------------------------------------------------

    @property
    def student(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def compiled(self, what: Any) -> Any:
        """A module or function, compiled where nnU-Net compiles its network: on CUDA."""
        return torch.compile(what) if self._do_i_compile() else what

    def train_beside(self, name: str, module: nn.Module) -> nn.Module:
        """Have a module learn beside the network: it goes to the device, its parameters into the
        optimiser, its state into the checkpoint; it is never deployed.

        Args:
            name: in the checkpoint.
            module: on the CPU.

        Returns:
            What to call: the module, compiled and wrapped for DDP as the network is. Both matter
            together: where nnU-Net compiles, it leaves the lowest resolution out of the loss, and
            DDP would wait for its gradient.
        """
        module.to(self.device)
        self.optimizer.add_param_group({"params": list(module.parameters())})
        self.further_modules[name] = module
        run = self.compiled(module)
        return DistributedDataParallel(run) if self.is_ddp else run

    @property
    def image_channels(self) -> int:
        """Channels of the image; in a cascade those of the first stage's segmentation follow."""
        of_first_stage = len(self.label_manager.foreground_labels) if self.is_cascaded else 0
        return int(self.num_input_channels) - of_first_stage

    @property
    def masked_channels(self) -> list[int]:
        """Channels that are normalised inside a mask, and 0 outside of it."""
        masks = self.configuration_manager.use_mask_for_norm
        return [channel for channel, masked in enumerate(masks) if masked]

    @property
    def exclusive(self) -> bool:
        """Whether classes exclude one another (softmax) or are regions (sigmoid)."""
        return not self.label_manager.has_regions

    def autocast(self) -> AbstractContextManager:
        """Mixed precision on CUDA only, as in nnU-Net."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def pseudo_label(self, weak: Tensor, teacher: Any = None) -> Tensor:
        """The teacher's confidence maps of the weak view (poster step 1).

        Args:
            weak: (B, C, *spatial).
            teacher: another one, for methods that have two.

        Returns:
            (B, K, *spatial) in [0, 1], without gradient.
        """
        if len(weak) == 0:
            return weak.new_zeros(0, self.label_manager.num_segmentation_heads, *weak.shape[2:])
        with torch.no_grad():
            return class_probabilities((teacher or self._run_teacher)(weak), self.exclusive)

    def student_logits(self, images: Tensor) -> list[Tensor]:
        """One student pass, one output per resolution of deep supervision, the finest first."""
        output = self.network(images)
        return list(output) if isinstance(output, (list, tuple)) else [output]

    # ---- losses and optimiser ----------------------------------------------------------------

    def supervised_loss(self, logits: list[Tensor], target: list[Tensor]) -> Tensor:
        """nnU-Net's own loss (poster step 5)."""
        if self.enable_deep_supervision:
            return self.loss(logits, target)
        return self.loss(logits[0], target[0])

    def optimise(self, loss: Tensor) -> None:
        """One optimiser step, left out where the gradient is not finite. But for that,
        nnUNetTrainer.train_step (nnU-Net 2.8.1) holds the lines of ``backward`` and ``take_step``
        between forward pass and return value, without a hook; a test compares them."""
        self.backward(loss)
        self.take_step()

    def backward(self, loss: Tensor) -> None:
        """The gradient of a loss, clipped."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
        else:
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.gradient_norms.append(gradient_norm(norm, self.optimizer, self.network))

    def take_step(self) -> None:
        """Change the weights, unless a gradient of this step is not finite: see finish_step."""
        finite = all(norm.isfinite() for norm in self.gradient_norms)
        if self.grad_scaler is not None:
            if finite:
                self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        elif finite:
            self.optimizer.step()

    @property
    def gradient_scalers(self) -> list[torch.amp.GradScaler]:
        """One for each optimiser; none without mixed precision."""
        return [] if self.grad_scaler is None else [self.grad_scaler]

    def update_teacher(self) -> None:
        """Poster step 6: the teacher follows the student."""
        self.teacher.update_parameters(self.student)

    # ---- end of a step -----------------------------------------------------------------------

    def finish_step(
        self,
        *,
        pseudo_label: Tensor | None = None,
        patches_per_class: Tensor | None = None,
        **losses: Tensor,
    ) -> dict:
        """Count the iteration and bring what is logged to the host in one transfer.

        Args:
            pseudo_label: what unlabelled patches learnt from, as ``targets.class_shares`` takes it;
                none or of no patch, as in warm-up, where there is none.
            patches_per_class: (K,) drawn patches, zeros where a method draws none.
            losses: ``loss`` (the total) and each of ``log.LOSSES`` that the method has.

        Returns:
            what ``nnUNetTrainer.train_step`` returns, with more keys.

        Raises:
            RuntimeError: a loss or the gradient is not finite; with a gradient scaler, it stays
                so.
        """
        rampup = self.consistency_rampup
        self.iteration_in_epoch += 1
        heads = self.label_manager.num_segmentation_heads
        if patches_per_class is None:
            patches_per_class = torch.zeros(heads)
        if pseudo_label is None or len(pseudo_label) == 0:
            shares = torch.zeros(heads + (not self.exclusive) + 1)
        else:
            shares = class_shares(pseudo_label, heads, self.exclusive)
        scalars = torch.stack(
            [x.detach().float() for x in (*losses.values(), *self.gradient_norms)]
        )
        counts = patches_per_class.to(scalars), shares.to(scalars)
        values = torch.cat((*counts, scalars)).cpu().numpy()
        patches, shares_of_classes, values = np.split(values, np.cumsum([len(x) for x in counts]))
        report = dict(zip(losses, values, strict=False))
        skipped = self._heed_nonfinite(report, values[len(losses) :])
        self.gradient_norms.clear()
        nothing = {name: np.float32(0) for name in log.LOSSES if name not in report}
        return {
            **report,
            **nothing,
            log.PATCHES: patches,
            log.CLASS_SHARES: shares_of_classes,
            log.SKIPPED: float(skipped),
            "ema_decay": self.teacher.decay,
            "consistency_rampup": rampup,
        }

    def _heed_nonfinite(self, losses: dict[str, Any], gradient_norms: np.ndarray) -> bool:
        """Whether the step was skipped."""
        values = {**losses, "norm of the gradient": np.linalg.norm(gradient_norms)}
        if np.isfinite(list(values.values())).all():
            self.skipped_steps.taken()
            return False
        self.skipped_steps.skipped([case for cases in self._cases.values() for case in cases])
        if not self.skipped_steps.too_many(self.gradient_scalers):
            return True
        named = ", ".join(f"{name} {value}" for name, value in values.items())
        of_batch = "; ".join(
            f"{part} {', '.join(dict.fromkeys(cases))}" for part, cases in self._cases.items()
        )
        often = f" Cases in most batches of skipped steps: {self.skipped_steps.suspects()}."
        raise RuntimeError(
            f"The loss or its gradient is not finite in epoch {self.current_epoch}, iteration "
            f"{self.iteration_in_epoch}: {named}. The batch held: {of_batch}."
            f"{often if self.gradient_scalers else ''} The weights are finite, and all checkpoints "
            f"are from before this step. Look for NaN, infinite or huge values in these cases, or "
            f"lower the weight of the part that is not finite (see 'plgcl' in the plans); then "
            f"continue with --c."
        )
