"""What nnU-Net trains, PLGCL trains: 3D, regions, ignore label, residual encoders, masks."""

import json
import pickle

import numpy as np
import torch
from conftest import TINY
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised import log as series
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def train(prepared, **configuration):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 2), prepared, **configuration)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    for key in ("loss_supervised", "loss_consistency", "loss_contrastive"):
        assert np.isfinite(log[key]).all() and log[key][-1] > 0
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())
    return trainer, log


def architecture(prepared, **changes):
    plans = prepared.plans()["configurations"][TINY]["architecture"]
    return {**plans, **changes}


def test_three_dimensions(prepared):
    of_2d = architecture(prepared)
    arguments = {
        **of_2d["arch_kwargs"],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    }
    of_3d = {**of_2d, "arch_kwargs": arguments}
    spacing = [10.0, *prepared.plans()["configurations"][TINY]["spacing"]]
    trainer, log = train(
        prepared, spacing=spacing, patch_size=[8, 40, 32], batch_size=2, architecture=of_3d
    )
    assert all(sum(counts) > 0 for counts in log[series.PATCHES])
    assert trainer.labelled_batch_size == 1


def test_regions(prepared):
    dataset = prepared.dataset_json()
    dataset["labels"] = {"background": 0, "heart": [1, 2, 3], "left ventricle": [2, 3], "LV": 3}
    dataset["regions_class_order"] = [1, 2, 3]
    (prepared.preprocessed / "dataset.json").write_text(json.dumps(dataset))
    trainer, log = train(prepared)
    assert not trainer.exclusive and len(log[series.PATCHES][0]) == 3


def test_ignore_label(prepared):
    dataset = prepared.dataset_json()
    dataset["labels"] = {"background": 0, "RV": 1, "MYO": 2, "ignore": 3}
    (prepared.preprocessed / "dataset.json").write_text(json.dumps(dataset))
    for case in (*prepared.split["train"], *prepared.split["val"]):
        # preprocessing would have written the places of annotated voxels under this key
        file = prepared.case_folder / f"{case}.pkl"
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"][(-1, 0, 1, 2)] = properties["class_locations"][1]
        file.write_bytes(pickle.dumps(properties))
    trainer, log = train(prepared)
    assert trainer.label_manager.has_ignore_label and len(log[series.PATCHES][0]) == 3


def test_residual_encoder(prepared):
    plans = architecture(prepared)
    arguments = dict(plans["arch_kwargs"])
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    trainer, _ = train(
        prepared, architecture={**plans, "network_class_name": name, "arch_kwargs": arguments}
    )
    assert type(trainer.student).__name__ == "ResidualEncoderUNet"


def test_normalisation_inside_a_mask(prepared):
    train(prepared, use_mask_for_norm=[True])


def test_loaders_with_worker_processes(prepared, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer, _ = train(prepared)
    train_loader, unlabelled = trainer.dataloader_train, trainer.dataloader_unlabelled
    assert train_loader.num_processes + unlabelled.num_processes == 2 == get_allowed_n_proc_DA()
    workers = trainer.dataloader_unlabelled._processes
    assert not any(process.is_alive() for process in workers), "workers outlive the training"
