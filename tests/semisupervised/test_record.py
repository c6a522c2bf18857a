"""--c goes on with the training that wrote the checkpoint, and with no other."""

import json

import pytest
import torch
from conftest import TINY
from training import make_trainer, tiny

from nnunetv2_plgcl.evaluation import runs
from nnunetv2_plgcl.evaluation.folds import Fold
from nnunetv2_plgcl.evaluation.refuse import require_split
from nnunetv2_plgcl.record import differences, read_record
from nnunetv2_plgcl.semisupervised.state import write_atomically
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

TRAINER = tiny(nnUNetTrainerPLGCL, 3, 1)


@pytest.fixture
def interrupted(prepared) -> str:
    """The latest checkpoint of a training of three epochs, after the first."""
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 3, 1), prepared)

    def enough():
        type(trainer).on_epoch_end(trainer)
        raise KeyboardInterrupt

    trainer.on_epoch_end = enough
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    return f"{trainer.output_folder}/checkpoint_latest.pth"


def write_split(prepared, **changes) -> None:
    file = prepared.preprocessed / "splits_final.json"
    file.write_text(json.dumps([{**prepared.split, **changes}]))


def test_other_settings_and_plans_are_refused_by_name(prepared, interrupted):
    for settings, message in (
        ({"seed": 1}, "settings.seed was 0, is 1"),
        ({"labelled_fraction": 0.25}, "settings.labelled_fraction was 0.5, is 0.25"),
        ({"ema_decay": 0.9}, "settings.ema_decay was 0.999, is 0.9"),
        ({"memory_length": 64}, "settings.memory_length was 1024, is 64"),
    ):
        with pytest.raises(ValueError, match=f"another training: {message}.*PLGCL_ALLOW_CHANGED=1"):
            make_trainer(TRAINER, prepared, settings).load_checkpoint(interrupted)
    with pytest.raises(ValueError, match="another training: plans.batch_size was 4, is 6"):
        make_trainer(TRAINER, prepared, batch_size=6).load_checkpoint(interrupted)
    trainer = make_trainer(TRAINER, prepared)
    trainer.plans_manager.plans["transpose_backward"] = [0, 2, 1]
    with pytest.raises(ValueError, match="another training: plans.transpose_backward was"):
        trainer.load_checkpoint(interrupted)
    with pytest.raises(ValueError, match="another training: epochs was 3, is 5"):
        make_trainer(tiny(nnUNetTrainerPLGCL, 5, 1), prepared).load_checkpoint(interrupted)
    make_trainer(TRAINER, prepared).load_checkpoint(interrupted)


@pytest.mark.parametrize("noted", [{}, {"settings": {"memory_length": 64, "memory_draws": 0}}])
def test_a_training_from_before_islands_were_removed_goes_on_without(prepared, noted):
    """Version 0.1 noted no settings, 0.2 those that it had."""
    settings = {
        "component_filter": "none",
        "memory_length": 64,
        "memory_draws": 0,
        "warmup_copy_paste": False,
    }
    trainer = make_trainer(TRAINER, prepared, {"memory_length": 64})
    trainer.initialize()
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["plgcl_record"] = noted
    write_atomically(checkpoint, file)
    with pytest.raises(
        ValueError, match="component_filter was 'none', is 'auto'.*memory_draws was"
    ):
        make_trainer(TRAINER, prepared, {"memory_length": 64}).load_checkpoint(file)
    make_trainer(TRAINER, prepared, settings).load_checkpoint(file)


def test_other_cases_are_refused_by_name(prepared, interrupted):
    train, val, unlabelled = (prepared.split[p] for p in ("train", "val", "unlabelled"))
    write_split(prepared, train=val, val=train)
    with pytest.raises(ValueError, match=f"Cases {', '.join(train[:3])} and 1 more labelled then"):
        make_trainer(TRAINER, prepared).load_checkpoint(interrupted)
    write_split(prepared, unlabelled=unlabelled[1:])
    trainer = make_trainer(TRAINER, prepared)
    trainer.load_checkpoint(interrupted)  # which --val does too, and that needs no unlabelled case
    with pytest.raises(ValueError, match=f"Case {unlabelled[0]} unlabelled then, not now"):
        trainer.run_training()


def test_a_change_that_is_meant_is_noted_and_no_comparison_takes_the_result(
    prepared, interrupted, monkeypatch
):
    monkeypatch.setenv("PLGCL_ALLOW_CHANGED", "1")
    trainer = make_trainer(TRAINER, prepared, {"ema_decay": 0.9})
    trainer.load_checkpoint(interrupted)
    trainer.run_training()
    saved = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    changes = ["epoch 1: settings.ema_decay was 0.999, is 0.9"]
    assert saved["plgcl_record"]["changes"] == changes
    run = runs.Run(prepared.name, "nnUNetTrainerPLGCL", "nnUNetPlans", TINY, 0, 0)
    assert read_record(run.folder)["changes"] == changes
    with pytest.raises(ValueError, match=r"did not go on as it began: epoch 1: settings\.ema"):
        require_split(run, Fold.of(prepared.split), True)
    with pytest.raises(ValueError, match="holds other weights than this training has"):
        make_trainer(TRAINER, prepared, {"memory_length": 64}).load_checkpoint(
            f"{trainer.output_folder}/checkpoint_final.pth"
        )


def test_differences_look_at_what_both_records_have():
    noted = {"cases": {"labelled": ["a", "b"], "validation": ["c"]}, "settings": {"x": 1, "old": 2}}
    assert differences(noted, {"settings": {"x": 1, "new": 3}, "epochs": 5}) == []
    assert differences(noted, {"cases": {"labelled": ["b", "a"], "unlabelled": ["u"]}}) == []
    assert differences(noted, {"cases": {"validation": ["d"]}, "settings": {"x": [1]}}) == [
        "Case c validation then, not now",
        "Case d validation now, not then",
        "settings.x was 1, is [1]",
    ]
