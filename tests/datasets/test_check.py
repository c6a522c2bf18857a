"""Each mistake in split, descriptions and arguments that a check is for."""

import json
import shutil

import pytest
from checking import raw_image, run, start, write_split
from conftest import TINY
from training import make_trainer, tiny

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets.check import parts as parts_module
from nnunetv2_plgcl.datasets.files import read_split
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def test_a_sound_dataset_passes_on_one_screen(prepared, capsys):
    status, out = run(capsys)
    assert status == 0 and "0 errors, 0 warnings" in out
    assert "4 labelled, 6 unlabelled, 2 validation cases" in out and len(out.splitlines()) < 10
    assert "4 labelled, 6 unlabelled, 2 validation cases" in start(prepared)


def test_every_parameter_is_counted(prepared, capsys):
    """The size that is announced is that of the real networks and the real memories."""
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    trainer.initialize()
    memories = (*trainer.positives.buffers(), *trainer.negatives.buffers())
    networks = (trainer.student, trainer.head, trainer.teacher_head)
    parameters = [p for network in networks for p in network.parameters()]
    size = sum(t.nbytes for t in (*parameters, *memories)) / 2**20
    assert f"plus at least {size:.0f} MiB that nnUNetTrainerPLGCL keeps" in run(capsys)[1]
    assert "as nnU-Net planned it. Checkpoints" in run(capsys, "-tr", "nnUNetTrainer")[1]


def test_a_patient_on_two_sides(prepared, capsys, monkeypatch):
    every = r"patient\d"  # as if the first digit told one patient from another
    status, out = run(capsys, "--group-by", every)
    assert status == 1 and "error   Patient patient0: some images are validation, others" in out
    assert run(capsys, "--group-by", ".+")[0] == 0, "each image a patient of its own"
    monkeypatch.setattr(parts_module, "guess_group_pattern", lambda cases: every)
    assert run(capsys)[0] == 1
    assert "error: Patient patient0" in start(prepared), "a guess does not stop a training"


def test_a_patient_of_the_validation_among_the_images_without_a_label(
    prepared, capsys, in_this_process
):
    """What the split noted as the patient is no guess: then the training stops, too."""
    by_patient = ("-d", "901", "--labelled", "2", "--val", "2", "--group-by", r"patient\d+")
    commands.split([*by_patient, "--force"])
    (fold,) = json.loads((prepared.preprocessed / "splits_final.json").read_text())
    patient = fold["val"][0].partition("_")[0]
    images_un = prepared.base / "nnUNet_raw" / prepared.name / "imagesUn"
    images_un.mkdir()
    shutil.copy(raw_image(prepared, fold["val"][0]), images_un / f"un_{patient}_x_0000.nii.gz")
    commands.split([*by_patient])
    assert f"1 validation patients have images in {images_un}" in capsys.readouterr().out
    commands.preprocess(["-d", "901", "-c", TINY])
    status, out = run(capsys)
    assert status == 1 and f"Patient {patient}: some images are validation" in out
    with pytest.raises(ValueError, match=f"Patient {patient}"):
        start(prepared)


@pytest.mark.parametrize(
    ("fold", "split", "message"),
    [
        ("1", None, "Fold 1 is not in"),
        ("0", {"train": []}, "has no case labelled"),
        ("0", {"val": []}, "has no case in validation"),
    ],
)
def test_folds_that_cannot_be_trained(prepared, capsys, fold, split, message):
    if split is not None:
        file = prepared.preprocessed / "splits_final.json"
        file.write_text(json.dumps([{**prepared.split, **split}]))
    with pytest.raises(SystemExit) as stopped:
        commands.check(["-d", "901", "-c", TINY, "-f", fold])
    assert stopped.value.code == 1 and message in capsys.readouterr().out


def test_a_fold_that_is_none_is_refused_with_the_arguments(capsys):
    with pytest.raises(SystemExit) as stopped:
        commands.check(["-d", "901", "-c", TINY, "-f", "first"])
    assert stopped.value.code == 2 and "a number or all" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["unlabeled", "Unlabelled", "un_labelled", "unlabelled_cases"])
def test_a_key_close_to_unlabelled_is_named(prepared, key):
    """Beside images in imagesUn it would be dropped in silence."""
    fold = {**prepared.split, key: prepared.split["unlabelled"]}
    file = prepared.preprocessed / "splits_final.json"
    file.write_text(json.dumps([fold]))
    with pytest.raises(ValueError, match=f'fold 0 has "{key}". Is "unlabelled" meant'):
        read_split(file)
    del fold["val"]
    fold["validation"] = fold.pop(key)
    file.write_text(json.dumps([fold]))
    with pytest.raises(ValueError, match='fold 0 has "validation". Is "val" meant'):
        read_split(file)


def test_any_other_key_of_a_fold_is_warned_of(prepared, capsys):
    write_split(prepared, test=["somebody"])
    status, out = run(capsys)
    assert status == 0 and "splits_final.json has test, which nothing reads" in out


@pytest.mark.parametrize(
    ("part", "meaning"), [("train", "labelled"), ("val", "validation"), ("unlabelled",) * 2]
)
def test_a_case_twice_in_one_part(prepared, capsys, part, meaning):
    first = prepared.split[part][0]
    write_split(prepared, **{part: [*prepared.split[part], first]})
    status, out = run(capsys)
    assert status == 1 and f"lists Case {first} twice as {meaning}" in out


def test_names_of_files_in_a_split(prepared, capsys):
    first, *others = prepared.split["train"]
    write_split(prepared, train=[f"{first}.nii.gz", *others])
    status, out = run(capsys)
    assert status == 1 and f"Case {first}.nii.gz: not preprocessed" in out
    assert f"Is {first} meant?" in out


def test_a_pattern_noted_for_names_that_have_changed(prepared, capsys):
    (prepared.preprocessed / "plgcl_groups.json").write_text(r'{"group_by": "subject\\d+"}')
    status, out = run(capsys)
    assert status == 0 and r"no patient by 'subject\d+', which plgcl_groups.json notes" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is damaged, it is not JSON"),
        ('{"train": []}', "is no list of folds"),
        ('[{"val": []}]', '"train" of fold 0 is no list of case names'),
        ('[{"train": ["../a"], "val": []}]', '"../a" in "train" of fold 0 is no case name, but a'),
        ('[{"train": [], "val": [], "unlabelled": "abc"}]', '"unlabelled" of fold 0 is no list'),
        ('[{"train": ["a"], "train": ["b"], "val": []}]', '"train" stands twice in one object'),
        ('[{"labelled": ["a"], "val": ["b"]}]', 'has "labelled". Is "train" meant'),
        ("[]", "holds no fold. Remove it, or write a split."),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_a_damaged_split_is_named(prepared, content, message):
    file = prepared.preprocessed / "splits_final.json"
    file.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        commands.check(["-d", "901", "-c", TINY, "-f", "0"])
    assert str(file) in stopped.value.code and message in stopped.value.code
    with pytest.raises(ValueError, match=message.split(",")[0]):
        start(prepared)


def test_folds_that_are_not_asked_for_may_be_wrong(prepared, capsys):
    """nnU-Net does not read them."""
    wrong = {"train": "abc", "validation": []}
    (prepared.preprocessed / "splits_final.json").write_text(json.dumps([prepared.split, wrong]))
    status, out = run(capsys)
    assert status == 0 and "0 errors, 0 warnings" in out
    start(prepared)


def test_a_damaged_note_of_the_patients(prepared):
    file = prepared.preprocessed / "plgcl_groups.json"
    for pattern in ("(", 5):
        file.write_text(json.dumps({"group_by": pattern}))
        with pytest.raises(SystemExit) as stopped:
            commands.check(["-d", "901", "-c", TINY, "-f", "0"])
        assert f'"group_by" in {file} is no regular expression' in stopped.value.code


def test_no_unlabelled_case_is_an_error_of_the_check_too(prepared, capsys):
    split = {part: prepared.split[part] for part in ("train", "val")}
    (prepared.preprocessed / "splits_final.json").write_text(json.dumps([split]))
    status, out = run(capsys)
    assert status == 1 and "names no unlabelled case" in out


def test_names_that_nnunet_accepts_in_dataset_json(prepared, capsys):
    """ "modality" as in earlier versions, labels in quotes, no numTraining."""
    content = prepared.dataset_json()
    content["modality"] = content.pop("channel_names")
    content["labels"] = {name: str(value) for name, value in content["labels"].items()}
    content.pop("numTraining", None)
    (prepared.preprocessed / "dataset.json").write_text(json.dumps(content))
    status, out = run(capsys)
    assert status == 0 and "0 errors, 0 warnings" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, 'is 1 per GPU: it cannot be divided'),
        ({"plgcl": {"feature_stages": [7]}}, "has 3 stages, got (7,)"),
        ({"plgcl": {"temperature": "warm"}}, "'temperature' must be of type float"),
        ({"plgcl": {"temprature": 1.0}}, "Unknown key 'temprature'"),
    ],
)  # fmt: skip
def test_what_a_trainer_refuses_the_check_refuses(prepared, capsys, change, message):
    plans = prepared.plans()
    plans["configurations"][TINY].update(change)
    (prepared.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    status, out = run(capsys)
    assert status == 1 and "error   nnUNetTrainerPLGCL does not start: " in out and message in out
    assert not list((prepared.base / "nnUNet_results").iterdir()), "nothing is left behind"


def test_another_trainer_is_checked(prepared, capsys):
    assert run(capsys, "-tr", "nnUNetTrainerMeanTeacher")[0] == 0
    file = prepared.preprocessed / "dataset.json"
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2]}
    file.write_text(json.dumps({**prepared.dataset_json(), "labels": labels}))
    status, out = run(capsys, "-tr", "nnUNetTrainerMeanTeacher")
    assert status == 1 and "nnUNetTrainerMeanTeacher does not start: if region-based" in out


def test_wrong_arguments_are_told_in_one_line(prepared):
    for arguments, message in (
        (["-d", "7", "-c", TINY, "-f", "0"], "no dataset 7"),
        (["-d", "901", "-c", "4d", "-f", "0"], "no configuration 4d"),
        (["-d", "901", "-c", TINY, "-f", "0", "--group-by", "("], "not a regular expression"),
    ):
        with pytest.raises(SystemExit, match=message) as stopped:
            commands.check(arguments)
        assert "\n" not in str(stopped.value.code)
