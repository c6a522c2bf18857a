import time
from datetime import timedelta

import pytest
from torch import distributed as dist
from torch import multiprocessing as mp
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised import ranks
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher


def _rank(rank: int, store: str, outcome) -> None:
    limit = timedelta(seconds=3)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit
    )
    ranks.HEARTBEAT = 0.5
    worked = []

    def fail():
        raise ValueError("an image is damaged")

    ranks.on_first_rank(lambda: worked.append(time.sleep(6)))  # longer than any rank waits
    try:
        ranks.on_first_rank(fail)
    except Exception as error:
        outcome[rank] = len(worked), type(error).__name__, str(error)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")
def test_ranks_wait_for_the_first_longer_than_a_barrier_does_and_all_fail_with_it(tmp_path):
    with mp.Manager() as manager:
        outcome = manager.dict()
        mp.spawn(_rank, (str(tmp_path / "store"), outcome), nprocs=2)
        assert outcome[0] == (1, "ValueError", "an image is damaged")
        assert outcome[1] == (0, "RuntimeError", "On the first rank: an image is damaged")


def test_one_process_just_works():
    worked = []
    ranks.on_first_rank(lambda: worked.append(1))
    assert worked == [1]


@pytest.mark.parametrize(
    ("size", "number", "nearest"),
    [(5, 2, "4 or 6"), (3, 2, "4 in"), (7, 4, "8 in"), (13, 4, "12 or 16")],
)
def test_a_batch_that_ranks_cannot_share_names_the_nearest(size, number, nearest):
    with pytest.raises(ValueError, match=f'{size} cannot be shared.*"batch_size" to {nearest}'):
        ranks.require_even_batch(size, number)


def test_an_uneven_batch_is_refused_where_the_dice_is_the_batchs(prepared, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    for batch_dice in (True, False):
        trainer = make_trainer(
            tiny(nnUNetTrainerMeanTeacher), prepared, batch_size=5, batch_dice=batch_dice
        )
        trainer.is_ddp = True
        if batch_dice:
            with pytest.raises(ValueError, match="4 or 6"):
                trainer._set_batch_size_and_oversample()
        else:
            trainer._set_batch_size_and_oversample()
            assert trainer.planned_batch_size == 3
