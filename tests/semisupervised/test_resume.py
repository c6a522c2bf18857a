"""A training killed at any time goes on to the same result, to the bit."""

import shutil
import signal
import subprocess
import sys
import time

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

from nnunetv2_plgcl.semisupervised.state import write_atomically
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

TIMES = ("epoch_start_timestamps", "epoch_end_timestamps")


def train_command(*more: str) -> list[str]:
    return nnunet_command(
        "nnUNetv2_train", 901, TINY, 0, "-tr", "nnUNetTrainerPLGCL_tiny", "-device", "cpu", *more
    )


def final_checkpoint(prepared) -> dict:
    folder = prepared.results / f"nnUNetTrainerPLGCL_tiny__nnUNetPlans__{TINY}" / "fold_0"
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    for key in TIMES:
        del checkpoint["logging"][key]
    return checkpoint


def test_two_epochs_a_kill_and_two_more_equal_four_epochs(prepared):
    environment = command_environment(prepared)
    subprocess.run(train_command(), env=environment, check=True, capture_output=True)
    undisturbed = final_checkpoint(prepared)
    shutil.rmtree(prepared.results)

    process = subprocess.Popen(
        train_command(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.rstrip().endswith("Epoch 2"):
            break
    time.sleep(0.2)  # somewhere inside the epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = prepared.results / f"nnUNetTrainerPLGCL_tiny__nnUNetPlans__{TINY}" / "fold_0"
    assert not (folder / "checkpoint_final.pth").exists(), "the kill came too late"
    newest = torch.load(folder / "checkpoint_latest.pth", weights_only=False)
    assert newest["current_epoch"] == 2

    subprocess.run(train_command("--c"), env=environment, check=True, capture_output=True)
    assert_equal_to_the_bit(final_checkpoint(prepared), undisturbed)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_continuing_from_any_epoch_is_exact(prepared, stop_after, tmp_path):
    """Also across the change of stage, which comes after epoch 0."""
    straight = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared)
    straight.run_training()
    expected = torch.load(f"{straight.output_folder}/checkpoint_final.pth", weights_only=False)
    shutil.rmtree(prepared.results)

    class StopError(Exception):
        pass

    stopped = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared)

    def interrupted(batch):
        if stopped.current_epoch == stop_after and stopped.iteration_in_epoch == 1:
            raise StopError
        return type(stopped).train_step(stopped, batch)

    stopped.train_step = interrupted
    with pytest.raises(StopError):
        stopped.run_training()

    continued = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared)
    continued.load_checkpoint(f"{continued.output_folder}/checkpoint_latest.pth")
    assert continued.current_epoch == stop_after
    continued.run_training()
    result = torch.load(f"{continued.output_folder}/checkpoint_final.pth", weights_only=False)
    for checkpoint in (result, expected):
        for key in TIMES:
            del checkpoint["logging"][key]
    assert_equal_to_the_bit(result, expected)


def test_a_new_best_checkpoint_is_also_the_latest(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 1), prepared)
    trainer.save_every = 50  # nnU-Net's own rhythm: no `latest` in a run this short
    trainer.on_train_end = lambda: None
    trainer.run_training()
    best, latest = (
        torch.load(f"{trainer.output_folder}/checkpoint_{name}.pth", weights_only=False)
        for name in ("best", "latest")
    )
    assert_equal_to_the_bit(latest, best)


def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path):
    file = tmp_path / "checkpoint_latest.pth"
    script = (
        "import sys, torch\n"
        "from nnunetv2_plgcl.semisupervised.state import write_atomically\n"
        "for number in range(10**6):\n"
        "    write_atomically({'number': number, 'x': torch.full((3 * 10**6,), number)}, "
        f"{str(file)!r})\n"
        "    print(number, flush=True)\n"
    )
    for delay in (0.01, 0.03, 0.05):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        checkpoint = torch.load(file)
        assert (checkpoint["x"] == checkpoint["number"]).all()


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint_best.pth"
    write_atomically({"x": 1}, file)

    def full_disk(checkpoint, stream):
        stream.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically({"x": 2}, file)
    assert torch.load(file) == {"x": 1}
