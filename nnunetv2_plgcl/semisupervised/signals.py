"""Signals by which schedulers end a job, and workers that end with their training. Source: ours."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType

ENDED = 143  # exit status, what a shell reports after SIGTERM
GRACE = 20  # seconds that other processes of a training outlive the signal
NAMES = ("SIGTERM", "SIGUSR1")  # of Slurm and others; a platform may lack one
PR_SET_PDEATHSIG = 1  # of Linux's prctl

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_training = 0  # process that trains, whose forks are its workers


class StopSignals:
    """Context manager: inside, SIGTERM and SIGUSR1 end the training with exit status 143.

    At once, until ``at_once`` is set to false: then the training looks at ``received`` where it
    can stop. A forked worker, and a rank of a distributed training but the first, goes on for
    ``GRACE`` seconds, because schedulers signal all processes together and the step in progress
    needs them all.

    Args:
        decides: whether this process ends the training; false for ranks but the first.
    """

    def __init__(self, decides: bool = True) -> None:
        self.decides = decides
        self.at_once = True
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        global _training
        if threading.current_thread() is threading.main_thread():  # else Python refuses
            _training = os.getpid()
            for number in _numbers():
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        global _training
        for number, handler in self._before.items():
            # None: installed by C, which Python cannot bring back
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]
        _training = 0

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if not self.decides:
            _end_soon()
        elif self.at_once:
            sys.exit(ENDED)


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def _end_soon(*_: object) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(GRACE)
    else:
        sys.exit(ENDED)


def _in_forked_worker() -> None:
    """A loader's worker ends with the training, even where that was killed without a word."""
    global _training
    trainer, _training = _training, 0
    if not trainer:
        return
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != trainer:  # which was killed meanwhile
            os._exit(1)
    for number in _numbers():
        signal.signal(number, _end_soon)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_worker)
