"""A training killed at any time goes on to the same result, to the bit."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
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

from nnunetv2_plgcl.semisupervised.state import STATE_KEY, read_checkpoint, write_atomically
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
    assert not (folder / "plgcl_owner.json").exists(), "the killed one's"


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


def ends_in_an_error(trainer, at_epoch, error=KeyError, words="a lost worker"):
    def broken(batch):
        if trainer.current_epoch == at_epoch:
            raise error(words)
        return type(trainer).train_step(trainer, batch)

    trainer.save_every = 50  # nnU-Net's own rhythm
    trainer.train_step = broken
    with pytest.raises(error):
        trainer.run_training()
    return Path(trainer.log_file).read_text(), Path(trainer.output_folder) / "checkpoint_latest.pth"


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyError, "a lost worker"), (KeyboardInterrupt, ""), (OSError, "no file caf\udce9")],
)
def test_an_error_is_logged_and_keeps_the_beginning_of_the_epoch(prepared, error, words):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared)
    log, latest = ends_in_an_error(trainer, 3, error, words)
    assert f"{error.__name__}: " in log and words[:11] in log
    assert "checkpoint_latest.pth holds the beginning of epoch 3: --c goes on" in log
    kept = torch.load(latest, weights_only=False)
    assert kept["current_epoch"] == 3
    deployed, teacher = kept["network_weights"], kept["plgcl"]["teacher"]
    name = next(iter(deployed))
    assert deployed[name].data_ptr() == teacher[f"module.{name}"].data_ptr(), "stored once"


@pytest.mark.parametrize("disabled", [False, True])
def test_an_error_is_not_hidden_where_nothing_can_be_kept(prepared, disabled):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 4, 2), prepared)

    def full():
        raise OSError("the disk is full")

    trainer.disable_checkpointing = disabled
    if not disabled:
        trainer.write_resume_point = full
    log, _ = ends_in_an_error(trainer, 0)
    assert "KeyError: 'a lost worker'" in log and "--c goes on" not in log
    assert ("The training could not be kept: OSError: the disk is full" in log) != disabled


def test_a_new_best_checkpoint_is_also_the_latest_in_a_file_of_its_own(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 1), prepared)
    trainer.save_every = 50  # nnU-Net's own rhythm: no `latest` in a run this short
    trainer.on_train_end = lambda: None
    trainer.run_training()
    files = [Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("best", "latest")]
    best, latest = (torch.load(file, weights_only=False) for file in files)
    assert_equal_to_the_bit(latest, best)
    assert not files[0].samefile(files[1])


def test_every_flipped_bit_is_found_and_the_next_good_checkpoint_is_named(tmp_path):
    generator = np.random.default_rng(0)
    latest, best = (tmp_path / f"checkpoint_{name}.pth" for name in ("latest", "best"))
    content = {"weights": torch.rand(1000), "more": [torch.arange(3000)], "current_epoch": 7,
               STATE_KEY: {}}  # fmt: skip
    write_atomically(content, best)
    whole = best.read_bytes()
    found = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[generator.integers(len(damaged))] ^= 1 << generator.integers(8)
        latest.write_bytes(damaged)
        try:
            assert_equal_to_the_bit(read_checkpoint(latest), content)  # of what means nothing
        except RuntimeError as error:
            found += 1
            assert f"{latest.name}: " in str(error) and "checkpoint_best.pth beside it is whole, " \
                "with 7 epochs done" in str(error)  # fmt: skip
    assert found > 85
    with pytest.raises(RuntimeError) as told:
        read_checkpoint(_truncated(latest))
    commands = str(told.value)
    commands = commands[commands.index("mv ") : commands.rindex("; then train with --c")]
    subprocess.run(commands, shell=True, check=True)
    assert not latest.exists() and (tmp_path / "checkpoint_latest.pth.damaged").exists()


def test_a_checkpoint_of_nnunets_own_trainer_is_no_way_out(tmp_path):
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"nothing")
    torch.save({"current_epoch": 7}, tmp_path / "checkpoint_best.pth")
    with pytest.raises(RuntimeError, match="There is no other"):
        read_checkpoint(tmp_path / "checkpoint_latest.pth")


def test_where_no_checkpoint_is_whole_all_have_to_go(tmp_path):
    for name in ("latest", "best"):
        (tmp_path / f"checkpoint_{name}.pth").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"no other.*mv .*latest.pth .*; mv .*best.pth "):
        read_checkpoint(tmp_path / "checkpoint_latest.pth")


def _truncated(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[:2000])
    return file


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
