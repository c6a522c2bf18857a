"""A training that may end at any time, and goes on with the same training, to the bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_plgcl import record
from nnunetv2_plgcl.semisupervised import loaders, signals
from nnunetv2_plgcl.semisupervised import state as states
from nnunetv2_plgcl.semisupervised.lock import only_training
from nnunetv2_plgcl.semisupervised.step import SemiSupervisedStep
from nnunetv2_plgcl.settings import PLANS_KEY

_running: list[ResumableTraining] = []  # in this process


class ResumableTraining(SemiSupervisedStep):
    """Checkpoints, what they note, and how a training ends before its time.

    Each epoch has its own seed, so the state at an epoch's beginning is all that a continued
    training needs. It is kept in memory; a scheduler's signal finishes the step and writes it.
    So at most the epoch in progress is repeated, and the result is that of an undisturbed training.
    """

    _signals = signals.StopSignals()
    _resume_point: dict[str, Any] | None = None
    _record: dict[str, Any] = {}  # noqa: RUF012  # never changed in place
    _newest_on_disk = -1  # epoch with which a continued training would begin
    said_collapsed = False  # that pseudo-labels are of one class

    # ---- a training and its end --------------------------------------------------------------

    def run_training(self) -> None:
        with self._alone() as self._signals:
            _running.append(self)
            try:
                super().run_training()
            except (Exception, KeyboardInterrupt) as error:
                self._keep_after(error)
                raise
            finally:
                self._finish_loaders()
                _running.remove(self)
            if self._signals.received:  # after the last step
                raise SystemExit(signals.ENDED)

    def _keep_after(self, error: BaseException) -> None:
        """Write the beginning of the epoch that ended in an error, and the error into the log. What
        goes wrong with that is said, but does not hide the error."""
        try:
            self.write_resume_point()
            kept = "" if self._resume_point is None else self._kept()
        except Exception as another:
            kept = f"The training could not be kept: {type(another).__name__}: {another}"
        said = f"{type(error).__name__}: {error}. {kept}"
        try:
            self.print_to_log_file(said.encode(errors="backslashreplace").decode())
        except Exception:
            print(kept)

    def _kept(self) -> str:
        if self._resume_point is None:
            return "Nothing was written, as checkpointing is disabled."
        epoch = max(self._resume_point["current_epoch"], self._newest_on_disk)
        return (
            f"checkpoint_latest.pth holds the beginning of epoch {epoch}: --c goes on from there."
        )

    @contextmanager
    def _alone(self) -> Iterator[signals.StopSignals]:
        """The only training in the folder of results, which heeds signals."""
        if self.local_rank != 0:
            with signals.StopSignals(decides=False) as heeded:
                yield heeded
            return
        folder = Path(self.output_folder)
        with only_training(folder), signals.StopSignals() as heeded:
            states.remove_unfinished(folder)
            yield heeded

    def on_epoch_start(self) -> None:
        self._signals.at_once = False
        if self.local_rank == 0 and not self.disable_checkpointing:
            self._resume_point = _copied(self._checkpoint(self.current_epoch))
        super().on_epoch_start()

    def finish_step(self, **given: Any) -> dict:
        report = super().finish_step(**given)
        self.stop_if_asked()
        return report

    def validation_step(self, batch: dict) -> dict:
        report: dict = super().validation_step(batch)
        self.stop_if_asked()
        return report

    def stop_if_asked(self) -> None:
        """Write the beginning of the epoch and end, if a signal has come.

        Raises:
            SystemExit: it has.
        """
        if self._signals.received is None or self.local_rank != 0:
            return
        self.write_resume_point()
        self.print_to_log_file(
            f"{self._signals.received} in epoch {self.current_epoch}, iteration "
            f"{self.iteration_in_epoch}. {self._kept()}"
        )
        raise SystemExit(signals.ENDED)

    def write_resume_point(self) -> None:
        """Write the beginning of the epoch in progress as the latest checkpoint, unless its end is
        written already."""
        point = self._resume_point
        if point is not None and point["current_epoch"] >= self._newest_on_disk:
            file = Path(self.output_folder) / "checkpoint_latest.pth"
            states.require_finite(point, file)
            states.write_atomically(point, file)

    def _finish_loaders(self) -> None:
        loaders.finish(self.dataloader_train, self.dataloader_val, self.dataloader_unlabelled)

    # ---- checkpoints -------------------------------------------------------------------------

    def training_state(self) -> dict[str, Any]:
        """What a continued training needs beyond nnU-Net's keys. Subclasses add theirs."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "said_collapsed": self.said_collapsed,
            **{name: module.state_dict() for name, module in self.further_modules.items()},
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``training_state``."""
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        for name, module in self.further_modules.items():
            module.load_state_dict(state[name])
        self.said_collapsed = state.get("said_collapsed", False)  # none before 0.3

    def _checkpoint(self, next_epoch: int) -> dict[str, Any]:
        """nnU-Net's checkpoint, with ``training_state`` and the record under keys of their own.

        Args:
            next_epoch: with which a continued training begins.
        """
        of_nnunet = io.BytesIO()
        super().save_checkpoint(of_nnunet)
        of_nnunet.seek(0)
        checkpoint = states.read_checkpoint(of_nnunet)
        checkpoint["current_epoch"] = next_epoch
        if self.config.deployed_weights == "teacher":
            checkpoint["network_weights"] = self.teacher.module.state_dict()
        checkpoint[states.STATE_KEY] = self.training_state()
        checkpoint[record.RECORD_KEY] = self._record
        return checkpoint

    def save_checkpoint(self, filename: str) -> None:
        """Write ``_checkpoint`` atomically, if it is finite."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        checkpoint = self._checkpoint(self.current_epoch + 1)
        states.require_finite(checkpoint, filename)
        states.write_atomically(checkpoint, filename)
        self._newest_on_disk = checkpoint["current_epoch"]
        if Path(filename).name == "checkpoint_best.pth":
            states.make_latest(Path(filename))

    def require_continued(self, file: Path, cases: Mapping[str, Sequence[str]]) -> None:
        """Refuse a checkpoint that this training would not go on from. Nothing is loaded.

        Args:
            file: the checkpoint.
            cases: of each part of the fold.

        Raises:
            RuntimeError, ValueError: as ``load_checkpoint``.
        """
        noted = self._noted_in(self._read_own(file))
        record.require_same(noted, self._given(cases), file)

    def _read_own(self, file: str | Path) -> dict[str, Any]:
        """A checkpoint of this trainer, configuration, plans and dataset."""
        checkpoint = states.read_checkpoint(file)
        expected = {
            "trainer_name": type(self).__name__,
            "configuration": self.configuration_name,
            "plans_name": self.plans_manager.plans_name,
            "dataset_name": self.plans_manager.dataset_name,
        }
        states.check_origin(checkpoint, expected, file)
        return checkpoint

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:  # type: ignore[override]
        """Continue exactly where the checkpoint was written.

        Raises:
            RuntimeError: the file is damaged.
            ValueError: it belongs to another trainer, configuration, plans or dataset; other
                settings or cases; settings that need other tensors.
        """
        checkpoint = self._read_own(filename_or_checkpoint)
        if not self.was_initialized:
            self.initialize()
        self._loaded = filename_or_checkpoint
        self.current_epoch = checkpoint["current_epoch"]
        self._record = self._noted_in(checkpoint)
        labelled, validation = self.do_split()
        self._note({"labelled": labelled, "validation": validation})
        try:
            super().load_checkpoint(filename_or_checkpoint)
            self.load_training_state(checkpoint[states.STATE_KEY])
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{filename_or_checkpoint} holds other weights than this training has: {error}"
            ) from error

    # ---- what the training was given ---------------------------------------------------------

    _loaded: str | None = None

    def _noted_in(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint's record, with the settings of its time where it notes none."""
        noted = dict(checkpoint.get(record.RECORD_KEY, {}))
        earlier = self.config.earlier
        if not earlier:
            return noted
        plans = PlansManager(checkpoint["init_args"]["plans"])
        configuration = plans.get_configuration(self.configuration_name).configuration
        in_plans = {k: v for k, v in configuration.get(PLANS_KEY, {}).items() if k in earlier}
        return {**noted, "settings": {**earlier, **in_plans, **noted.get("settings", {})}}

    def _given(self, cases: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The record of this training, with the cases of the parts that are known."""
        return record.as_json(
            {
                record.CASES: {part: sorted(names) for part, names in cases.items()},
                "settings": asdict(self.config),
                "plans": record.conditions(self.plans_manager.plans, self.configuration_name),
                "labels": self.dataset_json["labels"],
                "regions_class_order": self.dataset_json.get("regions_class_order"),
                "epochs": self.num_epochs,
                "iterations": self.num_iterations_per_epoch,
            }
        )

    def _note(self, cases: dict[str, list[str]]) -> None:
        """Compare with what the loaded checkpoint notes, then note it.

        Args:
            cases: of the parts that are known by now.
        """
        now, noted = self._given(cases), self._record
        changes = list(noted.get(record.CHANGES, []))
        if self._loaded is not None:
            for change in record.require_same(noted, now, self._loaded):
                self.print_to_log_file(f"warning: changed since the checkpoint: {change}")
                changes.append(f"epoch {self.current_epoch}: {change}")
        now[record.CASES] = {**noted.get(record.CASES, {}), **now[record.CASES]}
        self._record = {**now, record.CHANGES: changes}


def write_resume_point() -> None:
    """Of the training that runs in this process, where one does: for a scheduler's own handler,
    which ends the process itself."""
    for training in _running:
        training.write_resume_point()


def _copied(value: Any, copies: dict[tuple, Tensor] | None = None) -> Any:
    """A copy of a checkpoint that further steps do not change, its tensors on the CPU.

    Args:
        value: a part of it.
        copies: of tensors, by their memory: deployed weights are the teacher's, and stay the same
            tensors, so that they take their place once.
    """
    copies = {} if copies is None else copies
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, dict):
        return {key: _copied(inner, copies) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(inner, copies) for inner in value)
    return copy.deepcopy(value)
