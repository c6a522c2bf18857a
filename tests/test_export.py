"""The exported model predicts the same in an environment that does not know this package."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import TINY
from registration.test_environments import Environment
from training import make_trainer, tiny

from nnunetv2_plgcl import commands, export
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL

PREDICT = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

if __name__ == "__main__":
    try:
        import nnunetv2_plgcl
    except ImportError:
        print("WITHOUT THE PACKAGE")
    model, images, output = sys.argv[1:]
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, (0,))
    predictor.predict_from_files_sequential(images, output)
"""


@pytest.fixture
def trained(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL, 2, 4), prepared, {"anchors": 16})
    trainer.run_training()
    return Path(trainer.output_folder_base)


def predict(python, model: Path, images: Path, output: Path) -> np.ndarray:
    script = output.with_suffix(".py")
    script.write_text(PREDICT)
    output.mkdir()
    said = python(script, model, images, output)
    (file,) = output.glob("*.nii.gz")
    return said, sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_it_predicts_the_same_to_the_bit_without_the_package(prepared, trained, tmp_path, capsys):
    commands.export([str(trained), str(tmp_path / "out")])
    assert "Written:" in capsys.readouterr().out
    images = tmp_path / "images"
    images.mkdir()
    case = prepared.split["val"][0]
    raw = prepared.base / "nnUNet_raw" / prepared.name / "imagesTr"
    shutil.copy(raw / f"{case}_0000.nii.gz", images)

    def here(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    there = Environment(tmp_path)
    model = tmp_path / "out" / prepared.name / f"nnUNetTrainer__nnUNetPlans__{TINY}"
    (tmp_path / "unzipped").mkdir()
    zipfile.ZipFile(tmp_path / "out.zip").extractall(tmp_path / "unzipped")
    unzipped = tmp_path / "unzipped" / prepared.name / model.name
    _, expected = predict(here, trained, images, tmp_path / "a")
    for folder, name in ((model, "b"), (unzipped, "c")):
        said, predicted = predict(there.run, folder, images, tmp_path / name)
        assert "WITHOUT THE PACKAGE" in said
        np.testing.assert_array_equal(predicted, expected)
    assert len(np.unique(expected)) > 1, "an empty prediction would equal anything empty"


def test_only_what_prediction_needs_is_kept(trained, tmp_path):
    model, archive = export.export_model(trained, tmp_path / "out")
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    assert set(checkpoint) == {*export.PREDICTION_NEEDS, "trainer_name"}
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert "plgcl" not in json.dumps(json.loads((model / "plans.json").read_text())).lower()
    original = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    for name, tensor in original["network_weights"].items():
        assert torch.equal(checkpoint["network_weights"][name], tensor)
    weights = checkpoint["network_weights"].values()  # some tensors under several names
    size = sum({t.data_ptr(): t.numel() * t.element_size() for t in weights}.values())
    whole = (trained / "fold_0" / "checkpoint_final.pth").stat().st_size
    assert file.stat().st_size < whole / 3
    assert file.stat().st_size < size + 200_000, "weights, and little beside them"
    assert not (tmp_path / ".out.incomplete").exists() and archive.is_file()


def failure(*arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        commands.export([str(a) for a in arguments])
    message = str(stopped.value.code)
    assert message.startswith("nnUNetv2_plgcl_export: ") and "\n" not in message
    return message


def test_mistakes_are_told_in_one_line(trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert "is no model folder" in failure(tmp_path, out)
    (tmp_path / "out.zip").touch()
    assert "out.zip exists already" in failure(trained, out)
    (tmp_path / "out.zip").unlink()
    monkeypatch.setattr(
        nnUNetTrainerPLGCL, "build_network_architecture", staticmethod(lambda *a: None)
    )
    assert "builds a network of its own" in failure(trained, out)
    monkeypatch.undo()
    final = trained / "fold_0" / "checkpoint_final.pth"
    kept = final.read_bytes()
    for path in (str(final), "../fold_0/checkpoint_final.pth"):
        assert "is a path; name a fold" in failure(trained, out, "-chk", path)
    assert "is a path; name a fold" in failure(trained, out, "-f", "../x")
    assert final.read_bytes() == kept, "exporting to a path would have written there"
    for foreign in ({"state_dict": {}}, [1]):
        torch.save(foreign, final)
        assert "checkpoint_final.pth is no checkpoint of nnU-Net" in failure(trained, out)
    final.unlink()
    assert "its training did not finish" in failure(trained, out)
    shutil.rmtree(trained / "fold_0")
    assert "no trained fold" in failure(trained, out)
    assert not out.exists()
