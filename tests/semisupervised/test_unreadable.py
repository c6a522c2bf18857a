"""Unlabelled cases that cannot be read any more, once a training runs."""

import shutil
from pathlib import Path

import pytest
import torch
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised.loaders import too_many_gone
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerVolumePseudoLabels import (
    nnUNetTrainerVolumePseudoLabels,
)
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher


def make(prepared, damaged_in_epoch: dict[int, list[str]], method=None, **settings):
    """A training during which files are damaged."""
    short = tiny(method or nnUNetTrainerMeanTeacher, epochs=3, iterations=6)
    trainer = make_trainer(short, prepared, settings or {"warmup_fraction": 0.0})
    begin = trainer.on_epoch_start

    def on_epoch_start():
        spoil(prepared, *damaged_in_epoch.get(trainer.current_epoch, []))
        begin()

    trainer.on_epoch_start = on_epoch_start
    return trainer


def spoil(prepared, *cases: str) -> None:
    files = [prepared.case_folder / f"{case}.b2nd" for case in cases]
    for file in files:
        content = file.read_bytes()
        file.rename(file.with_suffix(".whole"))
        file.write_bytes(content[: len(content) // 2])


def bring_back(prepared) -> None:
    for whole in prepared.case_folder.glob("*.whole"):
        whole.rename(whole.with_suffix(".b2nd"))


def test_one_is_skipped_logged_and_counted_several_end_the_training(prepared):
    first, second, *_ = prepared.split["unlabelled"]
    trainer = make(prepared, {0: [first], 1: [second]})
    with pytest.raises(RuntimeError, match="2 of 6 unlabelled cases.*continue with --c"):
        trainer.run_training()
    assert trainer.current_epoch >= 1, "one alone does not end it"
    text = Path(trainer.log_file).read_text()
    assert f"Unlabelled case {first} cannot be read any more and is skipped" in text
    assert text.count("is skipped from now on") == 2 and "1 of 6 are gone" in text
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    assert torch.load(file, weights_only=False)["current_epoch"] == trainer.current_epoch

    bring_back(prepared)
    again = make(prepared, {})
    again.initialize()
    again.load_checkpoint(str(file))
    again.run_training()
    assert again.current_epoch == 3 and not again.unreadable_cases


def test_no_volume_label_is_made_of_one_that_cannot_be_read(prepared):
    first, second, *others = prepared.split["unlabelled"]
    relabelling = {"method": nnUNetTrainerVolumePseudoLabels, "refreshes": 2}
    trainer = make(prepared, {2: [first]}, **relabelling)
    trainer.run_training()
    text = Path(trainer.log_file).read_text()
    assert text.count(f"Unlabelled case {first} cannot be read any more and is skipped") == 1
    labels = Path(trainer.output_folder, "pseudo_labels", "epoch_2")
    assert {file.stem for file in labels.iterdir()} == {second, *others}

    bring_back(prepared)
    shutil.rmtree(trainer.output_folder)
    trainer = make(prepared, {2: [first, second]}, **relabelling)
    with pytest.raises(RuntimeError, match="2 of 6 unlabelled cases.*continue with --c"):
        trainer.run_training()


def test_all_of_them_end_a_training_too(prepared):
    trainer = make(prepared, {0: prepared.split["unlabelled"]})
    with pytest.raises(RuntimeError, match="6 of 6 unlabelled cases"):
        trainer.run_training()


@pytest.mark.parametrize(
    ("gone", "cases", "ends"),
    [(1, 1, True), (1, 2, False), (2, 40, False), (3, 40, True), (2, 39, True), (0, 9, False)],
)
def test_more_than_five_per_cent_and_at_least_two(gone, cases, ends):
    assert too_many_gone(gone, cases) == ends
