"""Checkpoints that a kill cannot spoil and that say whose they are."""

from __future__ import annotations

import shlex
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from nnunetv2_plgcl.datasets.files import UNFINISHED, replacing

STATE_KEY = "plgcl"
OF_NNUNET = (  # what nnUNetTrainer.save_checkpoint writes and load_checkpoint reads
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema",
    "current_epoch", "init_args", "trainer_name",
)  # fmt: skip
IN_ORDER_OF_C = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


def require_finite(checkpoint: dict, file: str | Path) -> None:
    """Refuse to write what no training could go on from.

    Raises:
        RuntimeError: a tensor holds NaN or infinite values.
    """
    bad = [name for name, tensor in _tensors(checkpoint) if not tensor.isfinite().all()]
    if bad:
        raise RuntimeError(
            f"{file} was not written, as {bad[0]} is not finite ({len(bad)} tensors in all). "
            f"Checkpoints on disk are from before: continue with --c."
        )


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))


def write_atomically(checkpoint: dict, file: str | Path) -> None:
    """Save a checkpoint, so that ``file`` is whole at any time."""
    with replacing(Path(file)) as stream:
        torch.save(checkpoint, stream)


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill left of checkpoints that were being written."""
    for file in folder.glob(f"checkpoint_*{UNFINISHED}"):
        file.unlink(missing_ok=True)


def read_checkpoint(file: str | Path | IO[bytes]) -> dict[str, Any]:
    """Load a checkpoint to the CPU, after comparing the checksums in it where it is a file.

    Raises:
        RuntimeError: the file is damaged; with the next good one of its folder.
    """
    try:
        return _read(file)
    except Exception as error:
        advice = _advice(Path(file)) if isinstance(file, (str, Path)) else ""
        raise RuntimeError(
            f"Cannot read the checkpoint {file}: {error}. The file is damaged. {advice}"
        ) from error


def _read(file: str | Path | IO[bytes]) -> dict[str, Any]:
    if isinstance(file, (str, Path)):
        # PyTorch writes a CRC-32 beside the bytes of each tensor, but does not compare it
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    return checkpoint


def _advice(damaged: Path) -> str:
    """Which checkpoint --c can go on from instead, and how."""
    away = [damaged]
    for name in IN_ORDER_OF_C:
        file = damaged.with_name(name)
        if file == damaged or not file.is_file():
            continue
        try:
            checkpoint = _read(file)
            epoch, _ = checkpoint["current_epoch"], checkpoint[STATE_KEY]
        except Exception:
            away.append(file)
            continue
        return (
            f"Move it away; {file.name} beside it is whole, with {epoch} epochs done, and --c goes "
            f"on from there: {_move(away)}; then train with --c."
        )
    return f"There is no other. Move it away to begin anew: {_move(away)}; then train."


def _move(files: list[Path]) -> str:
    return "; ".join(f"mv {shlex.quote(str(f))} {shlex.quote(f'{f}.damaged')}" for f in files)


def newest(folder: Path) -> Path | None:
    """The checkpoint that --c of nnUNetv2_train goes on from; None where there is none."""
    files = (folder / name for name in IN_ORDER_OF_C)
    return next((file for file in files if file.is_file()), None)


def check_origin(checkpoint: Any, expected: dict[str, Any], file: str | Path) -> None:
    """Refuse a checkpoint of another trainer, configuration, plans or dataset.

    Args:
        checkpoint: as nnU-Net saves it.
        expected: values of ``trainer_name``, ``configuration``, ``plans_name`` and
            ``dataset_name`` of the training that wants to load it.

    Raises:
        ValueError: they differ, and both are named; or it is no checkpoint of nnU-Net.
    """
    lost = [key for key in OF_NNUNET if not isinstance(checkpoint, dict) or key not in checkpoint]
    if lost:
        raise ValueError(
            f"{file} is no checkpoint of a training in nnU-Net, it has no {', '.join(lost)}. Move "
            f"it away. (Weights to begin with: nnUNetv2_train -pretrained_weights FILE.)"
        )
    plans = checkpoint["init_args"]["plans"]
    found = {
        "trainer_name": checkpoint["trainer_name"],
        "configuration": checkpoint["init_args"]["configuration"],
        "plans_name": plans["plans_name"],
        "dataset_name": plans["dataset_name"],
    }
    different = [
        f"{name} {found[name]!r} (this training: {value!r})"
        for name, value in expected.items()
        if found[name] != value
    ]
    if different or STATE_KEY not in checkpoint:
        raise ValueError(
            f"{file} belongs to another training: "
            f"{', '.join(different) or 'it holds no teacher'}. Move it away, or train with "
            f"the trainer, plans and configuration that wrote it."
        )


def make_latest(best: Path) -> None:
    """Let checkpoint_best.pth be checkpoint_latest.pth too: --c prefers the latter, however old.

    A copy and no link, so that damage to one spares the other.
    """
    with (
        open(best, "rb") as source,
        replacing(best.with_name("checkpoint_latest.pth")) as stream,
    ):
        shutil.copyfileobj(source, stream)
