"""Ranks of a distributed training: work of the first that the others wait for, and whether they can
share a batch. Source: ours."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch import distributed as dist

HEARTBEAT = 15  # seconds; a barrier gives up after minutes


def on_first_rank(work: Callable[[], None]) -> None:
    """Let the first rank work while the others wait, however long that takes.

    It works in a thread, and the ranks meet every ``HEARTBEAT`` seconds. All ranks must call.

    Raises:
        Exception: what the work raised.
        RuntimeError: on the other ranks, that it raised something.
    """
    if not (dist.is_available() and dist.is_initialized()):
        work()
        return
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work) if dist.get_rank() == 0 else None
        error = None
        while error is None:
            error = _meet(future)
    if future is not None:
        future.result()
    if error:
        raise RuntimeError(f"On the first rank: {error}")


def _meet(future: Future | None) -> str | None:
    """None while the first rank works, then what went wrong, or nothing."""
    said: list[str | None] = [None]
    if future is not None and wait([future], HEARTBEAT).done:
        said = [str(future.exception() or "")]
    dist.broadcast_object_list(said)
    return said[0]


def require_even_batch(batch_size: int, ranks: int) -> None:
    """nnU-Net's batch Dice adds up over ranks, which must have equal shares of the batch.

    Raises:
        ValueError: they do not, with the nearest batch sizes.
    """
    if batch_size % ranks:
        below = batch_size - batch_size % ranks
        nearest = [size for size in (below, below + ranks) if size >= 2 * ranks] or [2 * ranks]
        raise ValueError(
            f"A batch of {batch_size} cannot be shared evenly by {ranks} GPUs, which the batch "
            f'Dice of this configuration needs. Set "batch_size" to '
            f"{' or '.join(map(str, nearest))} in the plans, or train on another number of GPUs."
        )
