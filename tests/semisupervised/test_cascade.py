"""Both stages of a cascade train on unlabelled cases."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from conftest import TINY
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import tiny

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.evaluation.tsne import features_of_model
from nnunetv2_plgcl.semisupervised import cascade
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

SECOND = f"{TINY}_cascade"
TRAINER = tiny(nnUNetTrainerPLGCL, 2, 2)


def cascaded(plans):
    configurations = plans["configurations"]
    configurations[SECOND] = {"inherits_from": TINY, "previous_stage": TINY}
    configurations[TINY]["next_stage"] = SECOND
    return plans


def stage(prepared, name):
    plans = cascaded(prepared.plans())
    configurations = plans["configurations"]
    plans["continue_training"] = False
    settings = {"warmup_fraction": 0.0, "cutout_probability": 1.0}
    configurations[SECOND]["plgcl"] = configurations[TINY]["plgcl"] = settings
    return TRAINER(plans, name, 0, prepared.dataset_json(), torch.device("cpu"))


def test_the_second_stage_trains_on_what_the_first_predicted(prepared, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"first stage.*nnUNetv2_train 901 {TINY} 0 -tr"):
        stage(prepared, SECOND).on_train_start()

    labels = [prepared.case_folder / f"{c}_seg.b2nd" for c in prepared.split["unlabelled"]]
    for label in labels:
        label.write_bytes(b"not a label")  # and never opened
    first = stage(prepared, TINY)
    first.run_training()
    everyone = Path(first.output_folder_base) / "predicted_next_stage" / SECOND

    def as_nnunet(self, save_probabilities=False):  # whose pools take a minute to start
        everyone.mkdir(parents=True)
        for case in prepared.split["val"]:
            label = blosc2.open(str(prepared.case_folder / f"{case}_seg.b2nd"))[0]
            nnUNetDatasetBlosc2.save_seg(label.astype(np.uint8), str(everyone / case))

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", as_nnunet)
    monkeypatch.setattr(cascade, "ProcessPoolExecutor", lambda n, _: ThreadPoolExecutor(1))
    first.perform_actual_validation()
    own = Path(first.output_folder) / "predicted_next_stage" / SECOND
    assert {f.stem for f in own.iterdir()} == set(prepared.split["unlabelled"])
    both = {*prepared.split["train"], *prepared.split["val"]}
    assert {f.stem for f in everyone.iterdir()} == both

    case, validated = prepared.split["train"][:2]
    before = os.stat(everyone / f"{case}.b2nd").st_mtime_ns
    (everyone / f"{validated}.b2nd").write_bytes(b"of nnU-Net, in the fold that validates it")
    file = prepared.preprocessed / "splits_final.json"
    (fold,) = json.loads(file.read_text())
    file.write_text(json.dumps([fold, {"train": fold["val"], "unlabeled": []}]))
    cascade.predict_for_next_stages(first, first.dataset_unlabelled)  # trained anew
    assert os.stat(everyone / f"{case}.b2nd").st_mtime_ns > before
    assert (everyone / f"{validated}.b2nd").read_bytes().startswith(b"of nnU-Net")
    file.write_text(json.dumps([fold]))
    (everyone / f"{validated}.b2nd").unlink()
    cascade.predict_for_next_stages(first, first.dataset_unlabelled)

    case = prepared.split["unlabelled"][0]
    stored = blosc2.open(str(own / f"{case}.b2nd"))[:]
    pixels = blosc2.open(str(prepared.case_folder / f"{case}.b2nd"))[:]
    assert stored.shape == pixels.shape[1:]

    second = stage(prepared, SECOND)
    second.on_train_start()
    second.on_train_epoch_start()
    labelled, _ = second.labelled_batch(next(second.dataloader_train))
    weak, strong = second.unlabelled_views(labelled)
    assert labelled.shape[1] == weak.shape[1] == strong.shape[1] == 1 + 3
    assert torch.equal(weak[:, 1:], strong[:, 1:]), "the first stage's segmentation is alike"
    assert set(weak[:, 1:].unique().tolist()) <= {0, 1}
    assert all(not torch.equal(a, b) for a, b in zip(weak[:, 0], strong[:, 0], strict=True))
    loaded = second.dataset_unlabelled.load_case(case)[2][:]
    np.testing.assert_array_equal(loaded, stored)

    stage(prepared, SECOND).run_training()
    model = Path(second.output_folder_base)
    with pytest.raises(NotImplementedError, match="second stage of a cascade"):
        features_of_model(model, 0, prepared.split["val"])


def test_a_kill_leaves_no_half_of_a_segmentation(tmp_path, monkeypatch):
    def killed(logits, shape, file, *_):
        Path(f"{file}.b2nd").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(cascade, "resample_and_save", killed)
    with pytest.raises(KeyboardInterrupt):
        cascade._resample_and_replace(tmp_path / "case", True, torch.zeros(1), (1,))
    assert not (tmp_path / "case.b2nd").exists()
    assert not cascade._is_validated(tmp_path / "case")


def test_the_check_asks_for_the_first_stage(prepared, capsys):
    (prepared.preprocessed / "nnUNetPlans.json").write_text(json.dumps(cascaded(prepared.plans())))
    model = prepared.results / f"nnUNetTrainerPLGCL__nnUNetPlans__{TINY}"
    for status, errors in ((1, "1 errors"), (0, "0 errors")):
        with pytest.raises(SystemExit) as stopped:
            commands.check(["-d", "901", "-c", SECOND, "-f", "0"])
        out = capsys.readouterr().out
        assert stopped.value.code == status and errors in out
        assert (
            f"made at the end of: nnUNetv2_train 901 {TINY} 0 -tr nnUNetTrainerPLGCL" in out
        ) == (status == 1)
        for folder, parts in ((model, ("train", "val")), (model / "fold_0", ("unlabelled",))):
            predicted = folder / "predicted_next_stage" / SECOND
            predicted.mkdir(parents=True, exist_ok=True)
            for case in (case for part in parts for case in prepared.split[part]):
                (predicted / f"{case}.b2nd").touch()


def test_nnunets_own_trainer_needs_no_unlabelled_case(prepared, capsys):
    (prepared.preprocessed / "nnUNetPlans.json").write_text(json.dumps(cascaded(prepared.plans())))
    model = prepared.results / f"nnUNetTrainer__nnUNetPlans__{TINY}"
    predicted = model / "predicted_next_stage" / SECOND
    predicted.mkdir(parents=True)
    for case in (*prepared.split["train"], *prepared.split["val"]):
        (predicted / f"{case}.b2nd").touch()
    for errors in ("0 errors", "1 errors"):
        with pytest.raises(SystemExit):
            commands.check(["-d", "901", "-c", SECOND, "-f", "0", "-tr", "nnUNetTrainer"])
        out = capsys.readouterr().out
        assert errors in out
        (predicted / f"{prepared.split['train'][0]}.b2nd").unlink(missing_ok=True)
    assert f"nnUNetv2_train 901 {TINY} FOLD -tr nnUNetTrainer -p nnUNetPlans, with the FOLD" in out
    assert "fold_0" not in out.partition("no segmentation")[2]


def test_the_network_sees_the_image_and_one_channel_for_each_label():
    image, previous = np.ones((2, 3, 4)), np.arange(12).reshape(3, 4) % 3
    seen = cascade.with_first_stage(image, previous, [1, 2])
    np.testing.assert_array_equal(seen, np.stack([*image, previous == 1, previous == 2]))
