"""nnU-Net's own commands on a model trained by PLGCL, from the command line."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY, Prepared
from training import command_environment, nnunet_command

TRAINER = "nnUNetTrainerPLGCL_tiny"


@pytest.fixture(scope="session")
def trained(prepared_once, tmp_path_factory) -> Prepared:
    base = tmp_path_factory.mktemp("trained")
    mine = Prepared(base, prepared_once.name, prepared_once.split)
    shutil.copytree(prepared_once.base, base, dirs_exist_ok=True)
    run(mine, "nnUNetv2_train", 901, TINY, 0, "-tr", TRAINER, "-device", "cpu", "--npz")
    return mine


def run(prepared: Prepared, *command: object) -> str:
    done = subprocess.run(
        nnunet_command(*command), env=command_environment(prepared), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def model_folder(prepared: Prepared) -> Path:
    return prepared.results / f"{TRAINER}__nnUNetPlans__{TINY}"


def predict(prepared: Prepared, output: Path) -> dict[str, np.ndarray]:
    images = prepared.base / "imagesVal"
    images.mkdir(exist_ok=True)
    for case in prepared.split["val"]:
        raw = prepared.base / "nnUNet_raw" / prepared.name / "imagesTr"
        shutil.copy(raw / f"{case}_0000.nii.gz", images)
    run(prepared, "nnUNetv2_predict", "-i", images, "-o", output, "-d", 901, "-c", TINY, "-f", 0,
        "-tr", TRAINER, "-device", "cpu", "-npp", 1, "-nps", 1)  # fmt: skip
    return segmentations(output, prepared.split["val"])


def segmentations(folder: Path, cases: list[str]) -> dict[str, np.ndarray]:
    return {c: sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{c}.nii.gz"))) for c in cases}


def test_prediction_repeats_the_final_validation(trained, tmp_path):
    predicted = predict(trained, tmp_path)
    validation = segmentations(model_folder(trained) / "fold_0" / "validation", list(predicted))
    for case, segmentation in predicted.items():
        np.testing.assert_array_equal(segmentation, validation[case])
        assert len(np.unique(segmentation)) > 1, "an empty prediction would equal anything empty"


def test_validation_can_be_repeated_alone(trained):
    summary = model_folder(trained) / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())["foreground_mean"]
    summary.unlink()
    run(trained, "nnUNetv2_train", 901, TINY, 0, "-tr", TRAINER, "-device", "cpu", "--val")
    assert json.loads(summary.read_text())["foreground_mean"] == before


def test_exported_zip_predicts_the_same_elsewhere(trained, tmp_path):
    """As it predicted in the final validation."""
    cases = trained.split["val"]
    expected = segmentations(model_folder(trained) / "fold_0" / "validation", cases)
    zip_file = tmp_path / "model.zip"
    run(trained, "nnUNetv2_export_model_to_zip", "-d", 901, "-o", zip_file, "-c", TINY,
        "-tr", TRAINER, "-f", 0)  # fmt: skip
    shutil.move(trained.results, tmp_path / "away")
    try:
        run(trained, "nnUNetv2_install_pretrained_model_from_zip", zip_file)
        for case, segmentation in predict(trained, tmp_path / "there").items():
            np.testing.assert_array_equal(segmentation, expected[case])
    finally:
        shutil.rmtree(trained.results, ignore_errors=True)
        shutil.move(tmp_path / "away", trained.results)


def test_find_best_configuration_accepts_the_trainer(trained):
    run(trained, "nnUNetv2_find_best_configuration", 901, "-c", TINY, "-tr", TRAINER, "-f", 0,
        "-np", 1, "--disable_ensembling")  # fmt: skip
    best = json.loads((trained.results / "inference_information.json").read_text())
    assert TRAINER in json.dumps(best["best_model_or_ensemble"])


def test_nothing_is_written_beside_the_labels_or_into_the_preprocessed_cases(
    trained, prepared_once
):
    def files(folder: Path) -> dict[str, bytes]:
        names = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): p.read_bytes() for p in names}

    assert files(trained.case_folder) == files(prepared_once.case_folder)
