import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from nnunetv2_plgcl.evaluation.tsne import features_of_model
from nnunetv2_plgcl.model_files import read_model_file
from nnunetv2_plgcl.pseudolabels.predict import MirroredPredictor


def test_what_nnunets_checkpoints_hold_is_read(tmp_path):
    content = {
        "trainer_name": "nnUNetTrainer",
        "network_weights": {"a": torch.arange(3.0)},
        "_best_ema": np.float32(0.5),
        "logging": {"mean_fg_dice": [np.float64(0.25)], "times": np.arange(2)},
        "init_args": {
            "plans": {"x": [1, None]},
            "configuration": "2d",
            "device": torch.device("cpu"),
        },
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    loaded = read_model_file(tmp_path / "checkpoint.pth")
    assert torch.equal(loaded["network_weights"].pop("a"), torch.arange(3.0))
    assert loaded["logging"].pop("times").tolist() == [0, 1]
    assert loaded["_best_ema"] == 0.5 and loaded["logging"] == {"mean_fg_dice": [0.25]}
    assert loaded["init_args"] == content["init_args"]


class Harm:
    def __init__(self, file) -> None:
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_code_in_a_model_file_is_not_run(tmp_path):
    harm, file = tmp_path / "harm", tmp_path / "checkpoint.pth"
    for write in (torch.save, lambda content, to: to.write_bytes(pickle.dumps(content))):
        write({"network_weights": Harm(harm)}, file)
        with pytest.raises(ValueError, match=r"checkpoint.pth is no checkpoint that can be trust"):
            read_model_file(file)
        assert not harm.exists()
    (tmp_path / "fold_0").mkdir()
    file.rename(tmp_path / "fold_0" / "checkpoint_final.pth")
    for predict in (MirroredPredictor, features_of_model):
        with pytest.raises(ValueError, match=r"checkpoint_final.pth is no checkpoint that can be"):
            predict(tmp_path, 0, torch.device("cpu"))
        assert not harm.exists()
    file.write_bytes(b"PK\3\4 of garbage")
    with pytest.raises(ValueError, match="checkpoint"):
        read_model_file(file)


def test_what_is_wrong_with_a_model_file_is_said_in_our_words(tmp_path):
    file = tmp_path / "checkpoint.pth"
    for content, reason in (
        ({"a": Harm(tmp_path / "harm")}, r"it holds posix\.mkdir, which could be any code"),
        ({"a": torch.nn.Linear(1, 1)}, r"it holds torch\.nn\.modules\.linear\.Linear, which"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=reason) as told:
            read_model_file(file)
        assert "weights_only" not in str(told.value), "no advice to load it all the same"
    content = {"network_weights": {}, "trainer_name": "nnUNetTrainer", "init_args": {}}
    for lost in (*content, None):
        torch.save({key: value for key, value in content.items() if key != lost}, file)
        named = lost or "configuration in its init_args"
        with pytest.raises(ValueError, match=f"no checkpoint of nnU-Net: it has no {named}"):
            read_model_file(file)
    for damaged in (file.read_bytes()[:500], b"no zip", b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="trusted: it is damaged"):
            read_model_file(file)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_that_another_version_of_numpy_wrote_are_read(tmp_path, core):
    """NumPy 2 moved what pickle makes them with."""
    content = {
        "network_weights": {},
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "2d"},
        "logging": [np.float64(0.5), np.float16(1), np.str_("a"), np.arange(3)],
    }
    file = tmp_path / "checkpoint.pth"
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            for other in (b"numpy._core.", b"numpy.core."):
                data = data.replace(other, b"numpy.%s." % core.encode())
            archive.writestr(name, data)
    loaded = read_model_file(file)["logging"]
    assert loaded[:3] == [0.5, 1, "a"] and loaded[3].tolist() == [0, 1, 2]
