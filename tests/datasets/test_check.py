"""Each mistake that a check is for, made in real or nearly real data."""

import json
import pickle
import shutil
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from training import make_trainer, tiny

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets import cache as cache_module
from nnunetv2_plgcl.datasets import summary as summary_module
from nnunetv2_plgcl.datasets.check import parts as parts_module
from nnunetv2_plgcl.datasets.check.images import check_images, check_spacing_files
from nnunetv2_plgcl.datasets.check.labels import check_labels
from nnunetv2_plgcl.datasets.check.parts import check_parts
from nnunetv2_plgcl.datasets.files import read_split
from nnunetv2_plgcl.datasets.summary import ImageSummary, read_summary, summaries, summarise
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def raw_image(prepared, case: str) -> Path:
    return prepared.base / "nnUNet_raw" / prepared.name / "imagesTr" / f"{case}_0000.nii.gz"


def rewrite(file: Path, change) -> None:
    """Read an image, change array and header, write it back."""
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image).astype(np.float32)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


def run(capsys, *more: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        commands.check(["-d", "901", "-c", TINY, "-f", "0", *more])
    return stopped.value.code, capsys.readouterr().out


def start(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    trainer.on_train_start()
    return Path(trainer.log_file).read_text()


def test_a_sound_dataset_passes_on_one_screen(prepared, capsys):
    status, out = run(capsys)
    assert status == 0 and "0 errors, 0 warnings" in out
    assert "4 labelled, 6 unlabelled, 2 validation cases" in out and len(out.splitlines()) < 10
    assert "4 labelled, 6 unlabelled, 2 validation cases" in start(prepared)


def test_every_parameter_is_counted(prepared, capsys):
    """The size that is announced is that of the real network and the real memories."""
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    trainer.initialize()
    memories = (*trainer.positives.buffers(), *trainer.negatives.buffers())
    size = sum(t.nbytes for t in (*trainer.student.parameters(), *memories)) / 2**20
    assert f"about {size:.0f} MiB for the teacher" in run(capsys)[1]


def test_a_patient_on_two_sides(prepared, capsys, monkeypatch):
    every = r"patient\d"  # as if the first digit told one patient from another
    status, out = run(capsys, "--group-by", every)
    assert status == 1 and "error   Patient patient0: some images are validation, others" in out
    assert run(capsys, "--group-by", ".+")[0] == 0, "each image a patient of its own"
    monkeypatch.setattr(parts_module, "guess_group_pattern", lambda cases: every)
    assert run(capsys)[0] == 1
    assert "error: Patient patient0" in start(prepared), "a guess does not stop a training"


def test_a_copy_of_a_validation_image_among_the_unlabelled(prepared, capsys):
    """Under another name, compressed anew and as another type: only the content tells."""
    val, unlabelled = prepared.split["val"][0], prepared.split["unlabelled"][0]
    image = sitk.ReadImage(str(raw_image(prepared, val)), sitk.sitkFloat64)
    sitk.WriteImage(image, str(raw_image(prepared, unlabelled)))
    status, out = run(capsys)
    assert status == 1
    assert f"under two names: {unlabelled} (unlabelled) = {val} (validation). Remove" in out
    with pytest.raises(ValueError, match="The same image under two names"):
        start(prepared)


def test_useless_and_damaged_images(prepared, capsys):
    constant, cut = prepared.split["unlabelled"][:2]
    rewrite(raw_image(prepared, constant), lambda a: np.full_like(a, 7))
    file = raw_image(prepared, cut)
    file.write_bytes(file.read_bytes()[:3000])
    status, out = run(capsys)
    assert status == 1
    assert f"Case {constant}: the same value everywhere" in out
    assert f"Case {cut} cannot be read. {file} is truncated" in out


def test_images_unlike_the_labelled_ones_are_warned_of(prepared, capsys):
    spacing, turned, bright = prepared.split["unlabelled"][:3]
    image = sitk.ReadImage(str(raw_image(prepared, spacing)))
    image.SetSpacing([3.0 * s for s in image.GetSpacing()])
    sitk.WriteImage(image, str(raw_image(prepared, spacing)))
    image = sitk.ReadImage(str(raw_image(prepared, turned)))
    image.SetDirection(np.array(image.GetDirection()) * ([-1, -1, 1] * 3))
    sitk.WriteImage(image, str(raw_image(prepared, turned)))
    rewrite(raw_image(prepared, bright), lambda a: 100 * a + 1000)
    status, out = run(capsys)
    assert status == 0 and "0 errors, 3 warnings" in out
    assert f"Case {spacing}: voxel spacing" in out
    assert f"Case {turned}: axes point to" in out
    assert f"Case {bright}: mean intensity" in out
    assert "axes point to" in start(prepared)


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


def write_split(prepared, **changes):
    fold = {**prepared.split, **changes}
    (prepared.preprocessed / "splits_final.json").write_text(json.dumps([fold]))


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


def test_nan_in_a_file_of_floats_is_found_whatever_the_reader_makes_of_it(prepared, capsys):
    file = raw_image(prepared, prepared.split["unlabelled"][0])
    image = nibabel.load(file)
    values = image.get_fdata(dtype=np.float32)
    values[3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine), file)
    status, out = run(capsys)
    assert status == 1 and "NaN or infinite values" in out


def test_an_image_that_is_gone_is_said(prepared, capsys):
    raw_image(prepared, prepared.split["unlabelled"][0]).unlink()
    status, out = run(capsys)
    assert status == 0 and "no image in" in out and "so it is not checked" in out


def test_a_class_that_no_labelled_case_has(prepared, capsys):
    for case in prepared.split["train"]:
        file = prepared.case_folder / f"{case}.pkl"
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"][2] = []
        file.write_bytes(pickle.dumps(properties))
    name = next(n for n, v in prepared.dataset_json()["labels"].items() if v == 2)
    status, out = run(capsys)
    assert status == 0 and f"No labelled case has {name} (2)" in out


def test_cases_that_are_not_preprocessed(prepared, capsys):
    case = prepared.split["unlabelled"][0]
    (prepared.case_folder / f"{case}.b2nd").unlink()
    status, out = run(capsys)
    assert status == 1 and f"Case {case}: not preprocessed for configuration {TINY}" in out
    (prepared.case_folder / f"{prepared.split['train'][0]}.pkl").unlink()
    assert "is labelled but not preprocessed" in run(capsys)[1]


def test_a_hidden_file_that_nnunet_would_take_for_a_case(prepared, capsys):
    """macOS leaves such beside what it copies."""
    folder = prepared.case_folder
    (folder / f"._{prepared.split['train'][0]}.b2nd").write_bytes(b"Mac OS X")
    assert run(capsys)[0] == 0, "a fold that names its cases does not mind"
    with pytest.raises(SystemExit):
        commands.check(["-d", "901", "-c", TINY, "-f", "all"])
    assert f"error   {folder} holds ._{prepared.split['train'][0]}.b2nd" in capsys.readouterr().out


def test_no_unlabelled_case_is_an_error_of_the_check_too(prepared, capsys):
    split = {part: prepared.split[part] for part in ("train", "val")}
    (prepared.preprocessed / "splits_final.json").write_text(json.dumps([split]))
    status, out = run(capsys)
    assert status == 1 and "names no unlabelled case" in out


def test_without_raw_images_the_rest_is_checked(prepared, capsys):
    shutil.rmtree(prepared.base / "nnUNet_raw" / prepared.name)
    status, out = run(capsys)
    assert status == 0 and "raw images are not at hand" in out


def test_labels_of_unlabelled_cases_are_not_opened(prepared, capsys):
    for case in prepared.split["unlabelled"]:
        for suffix in ("_seg.b2nd", ".pkl"):
            (prepared.case_folder / f"{case}{suffix}").write_bytes(b"not a label")
        label = prepared.base / "nnUNet_raw" / prepared.name / "labelsTr" / f"{case}.nii.gz"
        label.write_bytes(b"not a label")
    assert run(capsys)[0] == 0


def gt(prepared, case: str) -> Path:
    return prepared.preprocessed / "gt_segmentations" / f"{case}.nii.gz"


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_label_value_that_dataset_json_does_not_name(prepared, capsys, part):
    """A mask of 0 and 255, one stray voxel: read from the labels that a training may open."""
    case = prepared.split[part][0]
    rewrite(gt(prepared, case), lambda a: np.where(a == 1, 255, a))
    rewrite(gt(prepared, prepared.split["unlabelled"][0]), lambda a: 0 * a + 77)
    status, out = run(capsys)
    assert (
        status == 1 and f"Case {case}: value 255 in the label, but dataset.json names 0, 1" in out
    )
    assert "77" not in out
    with pytest.raises(ValueError, match=f"Case {case}: value 255"):
        start(prepared)


def test_labels_without_any_class_are_warned_of(prepared, capsys):
    """Users are told to fill labels of unlabelled cases with zeros; true negatives exist."""
    case = prepared.split["train"][0]
    rewrite(gt(prepared, case), lambda a: 0 * a)
    status, out = run(capsys)
    assert status == 0 and f"warning Case {case}: no voxel of any class in the label" in out


def test_values_of_labels_are_told_as_they_are():
    labels = {"background": "0", "ring": "1", "core": "2"}
    found = {"a": {"values": [0.0, 0.9999999]}, "b": {"values": [1.0, 2.0]}, "c": {"error": "x"},
             "d": {"values": [0.0, float("inf")]}, "e": {"values": [float("nan")]}}  # fmt: skip
    findings = texts(check_labels(found, {"labels": labels}), "error")
    assert "Case a: value 0.9999999, which is no whole number" in findings
    assert "Case d: value inf in the label" in findings and "Case e: value nan" in findings
    assert "case c cannot be read" in findings and "Case b" not in findings
    found = {"a": {"values": [0.0, 3.0]}, "b": {"values": [1.0, 3.0]}}
    with_ignore = {"labels": {"background": 0, "ring": 1, "core": 2, "ignore": 3}}
    findings = list(check_labels(found, with_ignore))
    assert not texts(findings, "error") and "Case a: no voxel" in texts(findings, "warning")


def damage(file: Path, how: str) -> None:
    image = blosc2.open(str(file), mode="r")[:]
    whole = file.read_bytes()
    file.unlink()
    if how in ("nan", "channels"):
        image = np.full_like(image, np.nan) if how == "nan" else np.concatenate([image, image])
        blosc2.asarray(image, urlpath=str(file))
    else:
        file.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"\7" * 999}[how])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "cannot be opened, it is damaged"),
        ("garbage", "cannot be opened, it is damaged"),
        ("channels", "2 channels preprocessed, but dataset.json has 1"),
        ("nan", "NaN or infinite once preprocessed"),
    ],
)
@pytest.mark.parametrize("part", ["unlabelled", "val"])
def test_damaged_preprocessed_files(prepared, capsys, how, message, part):
    """They would stop a training after its warm-up, or validation after all of it."""
    case = prepared.split[part][0]
    damage(prepared.case_folder / f"{case}.b2nd", how)
    status, out = run(capsys)
    assert status == 1 and f"Case {case}" in out and message in out


def test_a_training_does_not_start_with_a_damaged_file(prepared, capsys):
    case = prepared.split["unlabelled"][0]
    damage(prepared.case_folder / f"{case}.b2nd", "truncated")
    with pytest.raises(ValueError, match=f"Case {case}.*damaged.*nnUNetv2_preprocess"):
        start(prepared)


def test_paths_of_another_machine_and_an_empty_folder(prepared, capsys):
    raw = prepared.base / "nnUNet_raw" / prepared.name
    shutil.rmtree(raw / "imagesTr")
    (raw / "imagesTr").mkdir()
    status, out = run(capsys)
    assert status == 0 and "raw images are not at hand" in out
    file = prepared.preprocessed / "dataset.json"
    cases = [case for part in prepared.split.values() for case in part]
    listed = {
        c: {"images": [f"/elsewhere/{c}.nii"], "label": f"/elsewhere/l{c}.nii"} for c in cases
    }
    file.write_text(json.dumps({**prepared.dataset_json(), "dataset": listed}))
    status, out = run(capsys)
    assert status == 0 and "raw images are not at hand" in out


def test_a_preprocessed_folder_that_can_only_be_read(prepared, capsys, monkeypatch):
    """As on clusters: what was read is remembered beside the results, or not at all."""
    monkeypatch.setattr(cache_module.os, "access", lambda path, mode: False)
    assert run(capsys)[0] == 0
    assert not list(prepared.preprocessed.glob("plgcl_*"))
    assert len(list(prepared.results.glob("plgcl_*.json"))) == 4

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache_module.os, "replace", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    assert run(capsys)[0] == 0


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


def parts(labelled=(), unlabelled=(), validation=()):
    return {"labelled": labelled, "unlabelled": unlabelled, "validation": validation}


def image(mean=1.0, channels=1, digest=None, **changes) -> ImageSummary:
    values = {"shape": (2, 2, 2), "spacing": (1.0, 1.0, 1.0), "orientation": "LPS"}
    sides = {"minimum": (0.0,) * channels, "maximum": (9.0,) * channels, "mean": (mean,) * channels}
    return ImageSummary(**{**values, **sides, "digest": digest or str(id(object())), **changes})


def texts(findings, level) -> str:
    return " | ".join(finding.text for finding in findings if finding.level == level)


def test_one_patient_labelled_and_unlabelled_is_only_warned_of():
    findings = list(check_parts(parts(["p1_a", "p2_a"], ["p1_b", "p3_a"], ["p4_a"])))
    assert not texts(findings, "error") and "Patient p1:" in texts(findings, "warning")


def test_a_case_in_two_parts_is_an_error_without_any_guess():
    findings = list(check_parts(parts(["p1_a"], ["p2_a"], ["p2_a", "p2_b"])))
    assert any(f.certain and "p2_a: both unlabelled and validation" in f.text for f in findings)


def test_channels_must_be_those_of_the_dataset():
    findings = check_images(
        parts(["a"], ["b"]), {"a": image(digest="1"), "b": image(channels=2, digest="2")}, 1
    )
    assert "Case b: 2 channels, but dataset.json has 1" in texts(findings, "error")


@pytest.mark.parametrize("axes, warned", [("RAS", True), (None, False)])
def test_other_axes_are_warned_of_where_a_header_tells(axes, warned):
    seen = {"a": image(digest="1"), "b": image(orientation=axes, digest="2")}
    findings = check_images(parts(["a"], ["b"]), seen, 1)
    assert (
        "axes point to RAS, those of the labelled to LPS" in texts(findings, "warning")
    ) == warned


def test_values_that_are_not_finite_are_an_error():
    """ITK reads NaN in NIfTI files as zeros; other readers do not."""
    seen = {"a": image(digest="1"), "b": image(digest="2", finite=False)}
    findings = list(check_images(parts(["a"], ["b"]), seen, 1))
    assert "Case b: NaN or infinite values" in texts(findings, "error")


def test_black_slices_are_warned_of_and_no_copies():
    """Volumes saved as 2D images have some; in a volume all black is an export that failed."""
    black = {"shape": (1, 8, 8), "minimum": (0.0,), "maximum": (0.0,), "digest": "black"}
    seen = {"a": image(digest="1"), "b": image(**black), "c": image(**black)}
    findings = list(check_images(parts(["a"], ["b"], ["c"]), seen, 1))
    assert not texts(findings, "error") and "copies" not in texts(findings, "warning")
    assert "Cases b, c: the same value everywhere" in texts(findings, "warning")


def test_an_image_without_the_spacing_file_that_others_have(tmp_path):
    for name in ("a_0000.tif", "b_0000.tif", "a.json"):
        (tmp_path / name).touch()
    files = {case: [tmp_path / f"{case}_0000.tif"] for case in "ab"}
    found = texts(check_spacing_files(parts(["a"], ["b"]), files), "warning")
    assert f"Case b: no file {tmp_path / 'b.json'} with the spacing" in found
    (tmp_path / "a.json").unlink()
    assert not list(check_spacing_files(parts(["a"], ["b"]), files))


def test_an_image_that_its_reader_turns_is_not_warned_of(tmp_path):
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient

    file = tmp_path / "a_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6)), np.diag([-1, -1, 1, 1])), file)
    assert read_summary([file], NibabelIO).orientation == "LPS"
    assert read_summary([file], NibabelIOWithReorient).orientation == "RAS"


def test_copies_within_one_part_are_only_wasteful():
    seen = {"a": image(digest="1"), "b": image(digest="2"), "c": image(digest="2")}
    findings = list(check_images(parts(["a"], ["b", "c"]), seen, 1))
    assert not texts(findings, "error")
    assert "twice in one part: b = c." in texts(findings, "warning")


def test_a_summary_says_what_numpy_says(prepared):
    file = raw_image(prepared, prepared.split["train"][0])
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    seen = read_summary([file], SimpleITKIO)
    assert seen.shape == array.shape
    assert seen.orientation == "".join(nibabel.aff2axcodes(nibabel.load(file).affine))
    assert seen.mean == pytest.approx((array.mean(),))
    assert (seen.minimum, seen.maximum) == ((array.min(),), (array.max(),))
    spacing = sitk.ReadImage(str(file)).GetSpacing()[::-1]
    assert seen.spacing == pytest.approx(spacing)


def test_only_finite_values_are_averaged():
    data = np.array([[[[1.0, 3.0, np.nan, np.inf]]]])
    seen = summarise(data, {"spacing": (1, 1, 1)})
    assert seen.mean == (2.0,) and seen.maximum == (3.0,) and not seen.finite
    assert summarise(np.full((1, 1, 1, 2), np.nan), {"spacing": (1, 1, 1)}).mean == (0.0,)


def test_images_are_read_once_until_they_change(prepared, tmp_path, monkeypatch):
    cases = prepared.split["train"][:2]
    files = {case: [raw_image(prepared, case)] for case in cases}
    cache = tmp_path / "cache.json"
    first = summaries(files, SimpleITKIO, cache, 1)
    seen = []

    def record(paths, reader):
        seen.extend(paths)
        return read_summary(paths, reader)

    monkeypatch.setattr(summary_module, "read_summary", record)
    assert summaries(files, SimpleITKIO, cache, 1) == first and not seen
    rewrite(files[cases[0]][0], lambda a: a + 1)
    again = summaries(files, SimpleITKIO, cache, 1)
    assert seen == files[cases[0]] and again[cases[0]].digest != first[cases[0]].digest
    cache.write_text("{ damaged")
    assert summaries(files, SimpleITKIO, cache, 1) == again


def test_worker_processes_find_the_same(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "IN_THIS_PROCESS", 1)
    files = {case: [raw_image(prepared, case)] for case in prepared.split["unlabelled"]}
    alone = summaries(files, SimpleITKIO, tmp_path / "a.json", 1)
    assert summaries(files, SimpleITKIO, tmp_path / "b.json", 2) == alone
