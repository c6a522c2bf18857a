"""Checkpoints that a kill cannot spoil and that say whose they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

STATE_KEY = "plgcl"


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
    """Save to a temporary file beside ``file``, flush it to disk, then rename.

    Whatever interrupts it, ``file`` is either the old checkpoint or the new one, whole.
    """
    temporary = Path(f"{file}.tmp")
    with open(temporary, "wb") as stream:
        torch.save(checkpoint, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def read_checkpoint(file: str | Path | IO[bytes]) -> dict[str, Any]:
    """Load a checkpoint to the CPU.

    Raises:
        RuntimeError: the file cannot be read as a checkpoint.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        raise RuntimeError(
            f"Cannot read the checkpoint {file}: {error}. The file is damaged. Move it away; "
            f"--c then continues from the next one in the same folder, or starts anew."
        ) from error
    return checkpoint


def check_origin(checkpoint: dict[str, Any], expected: dict[str, Any], file: str | Path) -> None:
    """Refuse a checkpoint of another trainer, configuration, plans or dataset.

    Args:
        checkpoint: as nnU-Net saves it.
        expected: values of ``trainer_name``, ``configuration``, ``plans_name`` and
            ``dataset_name`` of the training that wants to load it.

    Raises:
        ValueError: they differ; both are named.
    """
    init_args = checkpoint["init_args"]
    found = {
        "trainer_name": checkpoint["trainer_name"],
        "configuration": init_args["configuration"],
        "plans_name": init_args["plans"]["plans_name"],
        "dataset_name": init_args["plans"]["dataset_name"],
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
    """Let checkpoint_best.pth be checkpoint_latest.pth too: --c prefers the latter, however old."""
    latest, temporary = best.with_name("checkpoint_latest.pth"), Path(f"{best}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(best, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(best, temporary)
    os.replace(temporary, latest)
