"""One training at a time in a folder of results. Source: ours."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from nnunetv2_plgcl.datasets.files import read_json, write_json

LOCK = "plgcl.lock"
OWNER = "plgcl_owner.json"


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Inside, this process alone writes to the folder.

    The lock is the operating system's: it ends with the process, however that ends. On a file
    system that has none nothing is locked.

    Raises:
        RuntimeError: another process does; with its host and number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder)
    try:
        now = datetime.now().isoformat(" ", "seconds")
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
        write_json(folder / OWNER, owner)
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def require_free(folder: Path) -> None:
    """Refuse a folder of results in which another process trains.

    Raises:
        RuntimeError: as ``only_training``.
    """
    if (folder / LOCK).is_file():
        _locked(folder).release()


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"{_owner(folder)} {folder}. Wait for it, or end it first.") from None
    except (NotImplementedError, OSError):
        pass
    return lock


def _owner(folder: Path) -> str:
    try:
        owner = read_json(folder / OWNER)
        return (
            f"Process {owner['process']} on {owner['host']} has been training since "
            f"{owner['since']} in"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "Another process trains in"
