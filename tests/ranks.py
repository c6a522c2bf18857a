"""Several processes on the CPU (gloo), as DDP has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as mp


def in_ranks(work: Callable[[int, int, Any], None], ranks: int, folder: Path) -> list[Any]:
    """What ``work(rank, ranks, result)`` has written to ``result[rank]``, rank by rank."""
    with mp.Manager() as manager:
        result = manager.dict()
        mp.spawn(_worker, (work, str(folder / "store"), ranks, result), nprocs=ranks)
        return [result[rank] for rank in range(ranks)]


def _worker(rank: int, work: Callable[..., None], store: str, ranks: int, result: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        work(rank, ranks, result)
    finally:
        dist.destroy_process_group()
