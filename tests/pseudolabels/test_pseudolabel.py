"""Unlabelled cases of a real dataset, labelled by a briefly trained model, by the command."""

import hashlib
import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import TINY, Prepared
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import make_trainer, tiny

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.evaluation import runs
from nnunetv2_plgcl.evaluation.folds import Fold
from nnunetv2_plgcl.pseudolabels import rounds, store
from nnunetv2_plgcl.pseudolabels.predict import (
    MirroredPredictor,
)
from nnunetv2_plgcl.pseudolabels.sources import read_sources

MODEL = ("-d", 901, "-c", TINY, "-tr", "nnUNetTrainer", "-f", 0, "-device", "cpu", "-np", 2)
NEW = "Dataset950_HeartPseudo"


@pytest.fixture(scope="session")
def trained_once(prepared_once, tmp_path_factory) -> Prepared:
    """A model of nnU-Net's own trainer, barely trained, so that it sees every class everywhere;
    labels of the unlabelled cases do not exist any more."""
    base = tmp_path_factory.mktemp("model")
    mine = Prepared(base, prepared_once.name, prepared_once.split)
    shutil.copytree(prepared_once.base, base, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mine.environment().items():
            patch.setenv(name, value)
        (base / "nnUNet_results").mkdir()
        random.seed(0)  # else chance makes two cases equally sure
        np.random.seed(0)
        torch.manual_seed(0)
        make_trainer(tiny(nnUNetTrainer, 1, 1), mine).run_training()
    for case in mine.split["unlabelled"]:
        for folder in (raw_of(mine) / "labelsTr", mine.preprocessed / "gt_segmentations"):
            (folder / f"{case}.nii.gz").unlink()
    return mine


def raw_of(prepared: Prepared, name: str | None = None) -> Path:
    return prepared.base / "nnUNet_raw" / (name or prepared.name)


@pytest.fixture
def trained(trained_once, tmp_path, monkeypatch) -> Prepared:
    mine = Prepared(tmp_path, trained_once.name, trained_once.split)
    shutil.copytree(trained_once.base, tmp_path, dirs_exist_ok=True)
    for name, value in mine.environment().items():
        monkeypatch.setenv(name, value)
    return mine


def label(trained: Prepared, *more: object) -> dict:
    output = trained.base / "out"
    commands.pseudolabel([str(word) for word in (*MODEL, "-o", output, *more)])
    return json.loads((output / "plgcl_pseudolabels.json").read_text())


def failure(trained: Prepared, *more: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        label(trained, *more)
    message = str(stopped.value.code)
    assert message.startswith("nnUNetv2_plgcl_pseudolabel: ") and "\n" not in message
    return message


def sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def array(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(file))


def test_true_and_pseudo_labels_side_by_side(trained, capsys):
    record = label(trained, "--new-dataset", 950, "--min-confidence", 0, "--rank")
    said = capsys.readouterr().out
    labelled, unlabelled, validation = (trained.split[p] for p in ("train", "unlabelled", "val"))
    assert sorted(record["cases"]) == unlabelled and record["left_out"] == {}
    raw, old = raw_of(trained, NEW), raw_of(trained)
    of_dataset = json.loads((raw / "plgcl_pseudolabels.json").read_text())["cases"]
    for case in [*labelled, *validation]:
        assert of_dataset[case]["kind"] == "true"
        assert sha(raw / "labelsTr" / f"{case}.nii.gz") == sha(old / "labelsTr" / f"{case}.nii.gz")
    for case in unlabelled:
        assert of_dataset[case]["kind"] == "pseudo"
        assert of_dataset[case]["sha256"] == sha(raw / "labelsTr" / f"{case}.nii.gz")
        image = sitk.ReadImage(raw / "imagesTr" / f"{case}_0000.nii.gz")
        pseudo = sitk.ReadImage(raw / "labelsTr" / f"{case}.nii.gz")
        assert pseudo.GetSize() == image.GetSize() and pseudo.GetOrigin() == image.GetOrigin()
        assert set(np.unique(sitk.GetArrayFromImage(pseudo))) <= {0, 1, 2, 3, 4}
    dataset = json.loads((raw / "dataset.json").read_text())
    assert dataset["numTraining"] == 12 and dataset["labels"]["ignore"] == 4
    preprocessed = trained.base / "nnUNet_preprocessed" / NEW
    (fold,) = json.loads((preprocessed / "splits_final.json").read_text())
    assert fold == {"train": sorted([*labelled, *unlabelled]), "val": validation}
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    assert plans["configurations"] == trained.plans()["configurations"]

    order = re.findall(r"^ +\d+  (\S+)  confidence (\S+), (.+)$", said, re.MULTILINE)
    assert sorted(case for case, *_ in order) == unlabelled
    confidences = [float(confidence) for _, confidence, _ in order]
    assert confidences == sorted(confidences) and all(reason for *_, reason in order)
    assert f"nnUNetv2_train 950 {TINY} 0 -tr nnUNetTrainer -p nnUNetPlans" in said
    page = (trained.base / "out" / "pseudolabels.html").read_text()
    assert (
        page.count('src="data:image/png') == len(unlabelled)
        and "http:" not in page
        and "https:" not in page
    )
    for word in ("--new-dataset", 950), ("--new-dataset", 901):
        assert "has the number" in failure(trained, *word)


def test_unsure_cases_are_left_out_and_named(trained, capsys):
    everything = label(trained, "--min-confidence", 0, "--filter", "none")
    assert not list(raw_of(trained).parent.glob("*950*"))
    assert "Next: add --new-dataset" in capsys.readouterr().out
    confidences = sorted(of["confidence"] for of in everything["cases"].values())
    limit = (confidences[2] + confidences[3]) / 2
    assert confidences[2] < limit < confidences[3], "six cases that differ"
    label(trained, "--min-confidence", limit, "--filter", "none", "--new-dataset", 950)
    said = capsys.readouterr().out
    (fold,) = json.loads(
        (trained.base / "nnUNet_preprocessed" / NEW / "splits_final.json").read_text()
    )
    assert "ignore" not in json.loads((raw_of(trained, NEW) / "dataset.json").read_text())["labels"]
    for case, of in everything["cases"].items():
        unsure = of["confidence"] < limit
        assert (f"left out: {case}: confidence" in said) == unsure
        assert (case in fold["train"]) != unsure
        assert (raw_of(trained, NEW) / "labelsTr" / f"{case}.nii.gz").exists() != unsure
    assert "No case is sure by 1.0" in failure(
        trained, "--min-confidence", "1.0", "--filter", "none", "--new-dataset", 951
    )


def test_only_the_largest_component_of_each_class_stays(trained):
    label(trained, "--filter", "largest", "--min-confidence", 0)
    for file in (trained.base / "out" / "predictions").glob("*.nii.gz"):
        for value in (1, 2, 3):
            mask = sitk.GetImageFromArray((array(file) == value).astype(np.uint8))
            components = sitk.GetArrayFromImage(sitk.ConnectedComponent(mask, True))
            sizes = set(np.bincount(components.ravel())[1:].tolist())
            assert len(sizes) <= 1, "of several equally large ones all stay"


def test_it_goes_on_where_it_was_and_a_corrected_label_counts_as_true(trained, capsys, monkeypatch):
    first = label(trained, "--min-confidence", 0)
    case = min(first["cases"], key=lambda name: first["cases"][name]["confidence"])
    file = trained.base / "out" / "predictions" / f"{case}.nii.gz"
    image = sitk.ReadImage(file)
    corrected = sitk.GetImageFromArray(np.ones_like(sitk.GetArrayFromImage(image)))
    corrected.CopyInformation(image)
    sitk.WriteImage(corrected, file)

    def predicts(*_):
        raise AssertionError("nothing is left to predict")

    monkeypatch.setattr(store, "MirroredPredictor", predicts)
    again = label(trained, "--min-confidence", 0, "--new-dataset", 950)
    assert again["cases"][case]["kind"] == "corrected"
    assert again["cases"][case]["sha256"] == sha(file)
    page = (trained.base / "out" / "pseudolabels.html").read_text()
    assert "corrected by a person" in page and case in page
    shutil.rmtree(trained.base / "nnUNet_preprocessed" / NEW)  # as if killed before it was done
    label(trained, "--min-confidence", 0, "--new-dataset", 950)
    assert (trained.base / "nnUNet_preprocessed" / NEW / "splits_final.json").is_file()
    assert (array(raw_of(trained, NEW) / "labelsTr" / file.name) == 1).all()

    other = next(name for name in first["cases"] if name != case)
    in_dataset = raw_of(trained, NEW) / "labelsTr" / f"{other}.nii.gz"
    sitk.WriteImage(sitk.ReadImage(in_dataset) * 0, in_dataset)  # corrected there too
    capsys.readouterr()
    commands.split(["-d", "950", "--force"])
    said = capsys.readouterr().out
    (fold,) = json.loads(
        (trained.base / "nnUNet_preprocessed" / NEW / "splits_final.json").read_text()
    )
    still_pseudo = sorted(set(first["cases"]) - {case, other})
    assert fold == {
        "train": sorted([*trained.split["train"], case, other]),
        "val": trained.split["val"],
        "unlabelled": still_pseudo,
    }
    assert "4 cases have pseudo-labels" in said and "2 were corrected" in said
    assert f"nnUNetv2_preprocess -d 950 -plans_name nnUNetPlans -c {TINY} && nnUNetv2_train" in said
    seen = trained.split["train"][0]
    commands.split(["-d", "950", "--labelled", "2", "--val", seen, "--force"])
    said = capsys.readouterr().out
    assert f"Warning: Case {seen} in validation, but the model that wrote the pseudo" in said
    with pytest.raises(SystemExit, match=f"{still_pseudo[0]} has no true label"):
        commands.split(["-d", "950", "--labelled", still_pseudo[0], "--force"])


def test_corrections_stay_through_all_rounds(trained, monkeypatch):
    first = label(trained, "--min-confidence", 0)
    case = trained.split["unlabelled"][0]
    file = trained.base / "out" / "predictions" / f"{case}.nii.gz"
    sitk.WriteImage(sitk.ReadImage(file) * 0 + 2, file)
    label(trained, "--new-dataset", 950, "--min-confidence", 0)
    model = runs.Run(NEW, "nnUNetTrainer", "nnUNetPlans", TINY, 0, 0)
    shutil.copytree(  # as if trained on the first round
        runs.Run(trained.name, "nnUNetTrainer", "nnUNetPlans", TINY, 0, 0).model_folder,
        model.model_folder,
    )
    (model.validation).mkdir(exist_ok=True)
    (model.validation / "summary.json").touch()
    for _ in range(2):  # the second call goes on where the first one ended
        label(trained, "--new-dataset", 950, "--iterate", 2, "--min-confidence", 0)
        second = json.loads(
            (trained.base / "out" / "round_2" / "plgcl_pseudolabels.json").read_text()
        )
        assert second["cases"][case]["kind"] == "corrected"
        assert {of["kind"] for c, of in second["cases"].items() if c != case} == {"pseudo"}
        last = raw_of(trained, "Dataset951_HeartPseudo") / "labelsTr" / f"{case}.nii.gz"
        assert (array(last) == 2).all()
    assert sorted(second["cases"]) == sorted(first["cases"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_text("junk"), "{file}"),
        (lambda file: sitk.WriteImage(sitk.ReadImage(file)[:, :, 1:], file), "has shape"),
        (lambda file: sitk.WriteImage(sitk.ReadImage(file) * 0 + 9, file), "has label 9, unknown"),
    ],
)
def test_a_corrected_label_that_cannot_be_one(trained, spoil, said):
    label(trained, "--min-confidence", 0)
    file = trained.base / "out" / "predictions" / f"{trained.split['unlabelled'][1]}.nii.gz"
    spoil(file)
    message = failure(trained, "--min-confidence", 0, "--new-dataset", 950)
    assert str(file) in message and said.format(file=file) in message
    assert not raw_of(trained, NEW).exists()


def test_predictions_that_no_record_knows_or_of_another_model_stay(trained):
    label(trained)
    record = trained.base / "out" / "plgcl_pseudolabels.json"
    content = json.loads(record.read_text())
    file = trained.base / "out" / "predictions" / f"{trained.split['unlabelled'][1]}.nii.gz"
    before = sha(file)
    record.write_text(json.dumps({**content, "model": "another"}))
    assert "holds pseudo-labels of another. Name another folder" in failure(trained)
    record.unlink()
    assert f"but not in {record}" in failure(trained)
    assert sha(file) == before


def test_rounds_train_on_what_the_round_before_labelled(trained, monkeypatch):
    trained_on = []

    def train(jobs, logs):
        (job,) = jobs
        run = job.run
        trained_on.append((run.dataset, run.trainer, run.fold))
        folder = trained.base / "nnUNet_preprocessed" / run.dataset
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        dataset = json.loads((folder / "dataset.json").read_text())
        trainer = tiny(nnUNetTrainer, 1, 1)(
            {**plans, "continue_training": False}, TINY, run.fold, dataset, torch.device("cpu")
        )
        trainer.run_training()

    monkeypatch.setattr(rounds, "launch_local", train)
    label(trained, "--new-dataset", 950, "--iterate", 2, "--min-confidence", 0)
    assert trained_on == [(NEW, "nnUNetTrainer", 0)]
    second = json.loads((trained.base / "out" / "round_2" / "plgcl_pseudolabels.json").read_text())
    assert NEW in second["model"] and second["round"] == 2
    assert sorted(second["cases"]) == trained.split["unlabelled"]
    assert raw_of(trained, "Dataset951_HeartPseudo").is_dir()


def test_what_is_missing_is_said_before_anything_is_predicted(trained):
    assert "Train it first: nnUNetv2_train" in failure(trained, "-tr", "nnUNetTrainerPLGCL")
    assert f"{TINY} 3 -tr nnUNetTrainer" in failure(trained, "-f", 3)
    assert "no dataset 7" in failure(trained, "-d", 7)
    with pytest.raises(SystemExit, match="2"):
        label(trained, "--iterate", 2)
    with pytest.raises(SystemExit, match="2"):
        label(trained, "--min-confidence", 1.5)
    split = trained.preprocessed / "splits_final.json"
    (fold,) = json.loads(split.read_text())
    split.write_text(json.dumps([{"train": fold["train"], "val": fold["val"]}]))
    assert "No case is unlabelled" in failure(trained)
    split.write_text(json.dumps([{**fold, "unlabelled": ["nobody"]}]))
    assert "Case nobody: no image" in failure(trained)


def test_patients_of_validation_and_test_cases_get_no_pseudo_label(trained, acdc):
    """Cases are frames of patients."""
    raw, split = raw_of(trained), trained.split
    source = raw / "imagesTr" / f"{split['unlabelled'][0]}_0000.nii.gz"
    patient = split["val"][0].partition("_")[0]
    (raw / "imagesUn").mkdir()
    (raw / "imagesTs").mkdir()
    shutil.copy(source, raw / "imagesUn" / f"{patient}_frame99_0000.nii.gz")
    shutil.copy(source, raw / "imagesUn" / "patient998_frame01_0000.nii.gz")
    shutil.copy(source, raw / "imagesTs" / "patient998_frame02_0000.nii.gz")
    fold = Fold(split["train"], split["val"], split["unlabelled"])
    sources = read_sources(raw, trained.dataset_json(), fold, r"patient\d+")
    assert sorted(sources.unlabelled) == split["unlabelled"]
    assert set(sources.left_out) == {f"{patient}_frame99", "patient998_frame01"}
    assert "validation" in sources.left_out[f"{patient}_frame99"]
    assert not set(sources.labels) & set(split["unlabelled"])


def test_mirrored_predictions_are_nnunets(trained):
    folder = trained.results / f"nnUNetTrainer__nnUNetPlans__{TINY}"
    files = [raw_of(trained) / "imagesTr" / f"{trained.split['val'][0]}_0000.nii.gz"]
    ours = MirroredPredictor(folder, 0, torch.device("cpu"))
    assert sorted(ours.mirrorings) == [(), (2,), (2, 3), (3,)]  # of (C, Z, Y, X)
    theirs = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    theirs.initialize_from_trained_model_folder(str(folder), (0,))

    def of_nnunet(mirrored: bool) -> np.ndarray:
        theirs.use_mirroring = mirrored
        image, properties = theirs.plans_manager.image_reader_writer_class().read_images(
            [str(file) for file in files]
        )
        return theirs.predict_single_npy_array(image, properties, None, None, True)[1]

    prediction = ours.predict(files)
    assert len(prediction.agreement) == 3
    assert all(math.isnan(a) or 0 <= a <= 1 for a in prediction.agreement)
    # tiles lie elsewhere in a mirrored image, hence not to the bit
    assert np.abs(prediction.probabilities - of_nnunet(True)).mean() < 0.02
    ours.predictor.allowed_mirroring_axes = None
    alone = ours.predict(files)
    theirs_alone = of_nnunet(False)  # nnU-Net resamples in half precision
    np.testing.assert_allclose(alone.probabilities, theirs_alone, atol=2e-3)
    assert (alone.segmentation == theirs_alone.argmax(0)).mean() > 0.99


def test_an_unknown_trainer_is_said_before_a_model_is_looked_for(trained):
    assert "nnUNetTrainerPLCGL" in failure(trained, "-tr", "nnUNetTrainerPLCGL")
    assert "Is nnUNetTrainerPLGCL meant?" in failure(trained, "-tr", "nnUNetTrainerPLCGL")
