"""nnU-Net's postprocessing, determined on validation cases and applied to what is compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY, Prepared, add_island

from nnunetv2_plgcl.evaluation.postprocessing import postprocess
from nnunetv2_plgcl.evaluation.runs import Run


@pytest.fixture
def run(prepared: Prepared) -> Run:
    """A training whose predictions of the validation cases are their references."""
    run = Run(prepared.name, "nnUNetTrainer", "nnUNetPlans", TINY, 0, 0)
    run.validation.mkdir(parents=True)
    for case in prepared.split["val"]:
        shutil.copy(references(prepared) / f"{case}.nii.gz", run.validation)
    for file, content in (("plans", prepared.plans()), ("dataset", prepared.dataset_json())):
        (run.model_folder / f"{file}.json").write_text(json.dumps(content))
    return run


def references(prepared: Prepared) -> Path:
    return prepared.preprocessed / "gt_segmentations"


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(file))


def test_islands_go_where_that_raises_the_dice_of_validation(prepared, run, tmp_path):
    files = sorted(run.validation.iterdir())
    for file in files:
        add_island(file)
    folder = postprocess(run, run.validation, references(prepared), tmp_path / "out", 1)
    assert sorted(file.name for file in folder.iterdir()) == [file.name for file in files]
    for file in files:
        assert (read(file) != read(references(prepared) / file.name)).sum() == 2
        np.testing.assert_array_equal(
            read(folder / file.name), read(references(prepared) / file.name)
        )
    rule = json.loads((tmp_path / "out" / "validation" / "postprocessing.json").read_text())
    assert rule["postprocessing_fns"] == ["remove_all_but_largest_component_from_segmentation"]
    assert rule["postprocessed"]["foreground_mean"]["Dice"] == 1

    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(files[0], other / "another.nii.gz")
    folder = postprocess(run, other, references(prepared), tmp_path / "out", 1)
    assert [file.name for file in folder.iterdir()] == ["another.nii.gz"]
    np.testing.assert_array_equal(
        read(folder / "another.nii.gz"), read(references(prepared) / files[0].name)
    )


def test_other_predictions_take_no_part_in_the_decision(prepared, run, tmp_path):
    others = tmp_path / "others"
    shutil.copytree(run.validation, others)
    for file in others.iterdir():
        add_island(file)
    folder = postprocess(run, others, references(prepared), tmp_path / "out", 1)
    for file in others.iterdir():  # validation has no islands: nothing to gain, so they stay
        np.testing.assert_array_equal(read(folder / file.name), read(file))
