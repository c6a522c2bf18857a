"""What schedulers do to a training: it ends with 143, and goes on to the same result."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from training import (
    assert_equal_to_the_bit,
    command_environment,
    make_trainer,
    nnunet_command,
    tiny,
)

from nnunetv2_plgcl.semisupervised import resume, signals, volumes
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

TRAINER = tiny(nnUNetTrainerPLGCL, 3, 2)


def checkpoint(trainer, name: str) -> dict:
    saved = torch.load(f"{trainer.output_folder}/checkpoint_{name}.pth", weights_only=False)
    for key in ("epoch_start_timestamps", "epoch_end_timestamps"):
        del saved["logging"][key]
    return saved


@pytest.fixture
def undisturbed(prepared) -> dict:
    trainer = make_trainer(TRAINER, prepared)
    trainer.run_training()
    final = checkpoint(trainer, "final")
    shutil.rmtree(prepared.results)
    return final


def test_after_any_signal_the_training_goes_on_to_the_same_result(prepared, undisturbed):
    for name, epoch, step in (
        ("SIGTERM", 0, "train_step"),
        ("SIGUSR1", 1, "validation_step"),
        ("SIGTERM", 2, "train_step"),
    ):
        trainer = make_trainer(TRAINER, prepared)
        trainer.save_every = 50  # nnU-Net's own rhythm
        trainer._best_ema = 1.0  # no new best one either
        finished = []

        def signalled(batch, name=name, epoch=epoch, step=step, trainer=trainer, done=finished):
            if trainer.current_epoch == epoch:
                signal.raise_signal(getattr(signal, name))
            done.append(getattr(type(trainer), step)(trainer, batch))
            return done[-1]

        setattr(trainer, step, signalled)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            trainer.run_training()
        assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
        text = Path(trainer.log_file).read_text()
        assert f"{name} in epoch {epoch}" in text and "--c goes on from there" in text
        assert checkpoint(trainer, "latest")["current_epoch"] == epoch

        continued = make_trainer(TRAINER, prepared)
        continued.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
        continued._best_ema = None if epoch == 0 else continued._best_ema
        continued.run_training()
        final = checkpoint(continued, "final")
        final["_best_ema"] = undisturbed["_best_ema"]
        assert_equal_to_the_bit(final, undisturbed)
        shutil.rmtree(prepared.results)


def test_a_signal_while_volumes_are_labelled_does_not_wait_for_the_others(
    prepared, undisturbed, monkeypatch
):
    trainer = make_trainer(TRAINER, prepared)
    labelled, volume_label = [], volumes.volume_label

    def signalled(*arguments):
        if trainer.current_epoch == 2:
            labelled.append(signal.raise_signal(signal.SIGTERM))
        return volume_label(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(volumes, "volume_label", signalled)
        trainer.run_training()
    assert end.value.code == 143 and len(labelled) == 1 < len(trainer.dataset_unlabelled.folders)
    assert checkpoint(trainer, "latest")["current_epoch"] == 2

    continued = make_trainer(TRAINER, prepared)
    continued.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    continued.run_training()
    assert_equal_to_the_bit(checkpoint(continued, "final"), undisturbed)


def test_a_signal_after_the_last_step_waits_for_the_final_checkpoint(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 1, 1), prepared)

    def on_train_end():
        signal.raise_signal(signal.SIGTERM)
        type(trainer).on_train_end(trainer)

    trainer.on_train_end = on_train_end
    with pytest.raises(SystemExit):
        trainer.run_training()
    assert checkpoint(trainer, "final")["current_epoch"] == 1


def test_a_platform_without_these_signals_trains(prepared, monkeypatch):
    monkeypatch.setattr(signals, "NAMES", ("SIGTERM", "SIGOFNOBODY"))
    with signals.StopSignals() as heeded, pytest.raises(SystemExit):
        assert list(heeded._before) == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(signals, "NAMES", ())
    make_trainer(tiny(nnUNetTrainerPLGCL, 1, 1), prepared).run_training()


def test_a_schedulers_own_handler_can_write_the_beginning_of_the_epoch(prepared):
    trainer = make_trainer(TRAINER, prepared)

    def train_step(batch):
        if trainer.current_epoch == 2:
            Path(f"{trainer.output_folder}/checkpoint_latest.pth").unlink()
            resume.write_resume_point()
            raise KeyboardInterrupt
        return type(trainer).train_step(trainer, batch)

    trainer.train_step = train_step
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    assert checkpoint(trainer, "latest")["current_epoch"] == 2
    os.unlink(f"{trainer.output_folder}/checkpoint_latest.pth")
    resume.write_resume_point()  # no training any more
    assert not os.path.exists(f"{trainer.output_folder}/checkpoint_latest.pth")


# ---- processes: real signals, and workers of the loaders -----------------------------------------


def processes_of(group: int) -> list[int]:
    """Running processes of a process group (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(folder.name))
    return found


def started(prepared, *more: str) -> subprocess.Popen:
    """A training with workers in a process group of its own, inside its second epoch."""
    environment = {**command_environment(prepared), "nnUNet_n_proc_DA": "2"}
    process = subprocess.Popen(
        nnunet_command("nnUNetv2_train", 901, TINY, 0, "-tr", "nnUNetTrainerPLGCL_tiny",
                       "-device", "cpu", *more),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.rstrip().endswith("Epoch 1"):
            return process
    raise AssertionError("it ended before")


def wait_until_nothing_is_left(group: int) -> None:
    end = time.monotonic() + 30
    while processes_of(group) and time.monotonic() < end:
        time.sleep(0.1)
    left = processes_of(group)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_a_signal_to_all_processes_and_a_kill_of_one_leave_no_worker(prepared):
    process = started(prepared)
    assert len(processes_of(process.pid)) >= 2, "the training and its workers"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    wait_until_nothing_is_left(process.pid)
    folder = prepared.results / f"nnUNetTrainerPLGCL_tiny__nnUNetPlans__{TINY}" / "fold_0"
    assert torch.load(folder / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1

    process = started(prepared, "--c")
    owner = (folder / "plgcl_owner.json").read_text()
    assert f'"process": {process.pid}' in owner
    os.killpg(process.pid, signal.SIGSTOP)  # else it would be done before the second begins
    second = subprocess.run(
        process.args, env=command_environment(prepared), capture_output=True, text=True
    )
    assert second.returncode != 0 and f"Process {process.pid} on" in second.stderr
    os.killpg(process.pid, signal.SIGCONT)
    process.kill()
    process.wait()
    wait_until_nothing_is_left(process.pid)
