import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets.files import write_split
from nnunetv2_plgcl.datasets.groups import describe_groups, group_cases, guess_group_pattern
from nnunetv2_plgcl.datasets.split import describe_numbers, make_split, parse_amount

PARTS = {"train", "val", "unlabelled"}


def patients(number: int, visits: int = 2) -> list[str]:
    return [f"patient{p:03d}_frame{v:02d}" for p in range(number) for v in range(visits)]


def patients_of(cases: list[str]) -> set[str]:
    return {case.split("_")[0] for case in cases}


@pytest.fixture
def acdc_cases(acdc: Path) -> list[str]:
    return [file.name[: -len(".nii.gz")] for file in (acdc / "labelsTr").iterdir()]


@pytest.fixture
def folders(acdc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net folders in which ACDC has number 27; returns its preprocessed folder."""
    for folder in ("raw", "preprocessed", "results"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path / folder))
    (tmp_path / "raw" / "Dataset027_ACDC").symlink_to(acdc, target_is_directory=True)
    preprocessed = tmp_path / "preprocessed" / "Dataset027_ACDC"
    preprocessed.mkdir()
    return preprocessed


def failure(*argv: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        commands.split([str(a) for a in argv])
    message = stopped.value.code
    assert isinstance(message, str) and "\n" not in message, "one line, exit status 1"
    return message


@pytest.mark.parametrize(
    ("names", "example", "group", "number"),
    [
        (["patient001_frame01", "patient001_frame12", "patient002_frame01"], 0, "patient001", 2),
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], 1, "sub-01", 2),
        (["BRATS_001_t1", "BRATS_001_t2", "BRATS_002_t1"], 0, "BRATS_001", 2),
        (["A0S9V9_ED", "A0S9V9_ES", "B1D0Q7_ED"], 0, "A0S9V9", 2),
        (["case_00000", "case_00001", "case_00002"], 2, "case_00002", 3),
        (["train_1", "train_2", "test_1"], 0, "train_1", 3),
        (["only"], 0, "only", 1),
        (["P1_T1", "P1_T2", "P2_T1", "control_1", "control_2"], 1, "P1", 4),
        (["P1_T1", "P1_T2", "P2_T1", "control_1", "control_2"], 4, "control_2", 4),
        (["A0S9V9_ED", "A0S9V9_ES", "B1D0Q7_ED", "phantom"], 1, "A0S9V9", 3),
        (["heart_1_a", "heart_1_b", "heart_2_a", "v2_1", "v2_2", "v3_1"], 1, "heart_1", 4),
        (["P1_T1", "P1_T2", "P2_T1", "control_1", "un_P2_T2"], 4, "P2", 3),
        (
            ["1.3.6.1.4.1.9328.50.4.0001", "1.3.6.1.4.1.9328.50.4.0002", "1.2.840.113619.2.5"],
            0,
            "1.3.6.1.4.1.9328.50.4.0001",
            3,
        ),
        (["1.2.840.1.1.7_0", "1.2.840.1.1.7_1", "1.2.840.1.1.8_0"], 1, "1.2.840.1.1.7", 2),
        (["case 1", "case 2", "case 3"], 1, "case 2", 3),
        (["patient 1 scan 1", "patient 1 scan 2", "patient 2 scan 1"], 1, "patient 1", 2),
    ],
)
def test_patients_are_guessed_from_names_as_datasets_have_them(names, example, group, number):
    groups = group_cases(names, guess_group_pattern(names))
    assert names[example] in groups[group] and len(groups) == number


def test_names_that_do_not_fit_are_said():
    names = [f"P{p}_T{t}" for p in range(6) for t in range(2)] + ["control_1", "control_2"]
    pattern = guess_group_pattern(names)
    said = describe_groups(group_cases(names, pattern), pattern, guessed=True)
    assert r"14 cases in 8 groups by 'P\d+', guessed" in said
    assert "left alone, each its own group: control_1, control_2" in said


def test_real_names_group_by_patient(acdc_cases):
    pattern = guess_group_pattern(acdc_cases)
    assert pattern == r"patient\d+"
    groups = group_cases(acdc_cases, pattern)
    assert len(groups) == 80 and {len(members) for members in groups.values()} == {2}


def test_standard_acdc_split_is_reproduced_from_the_names_of_its_patients(acdc, acdc_cases):
    standard = json.loads((acdc / "split.json").read_text())
    for number in ("3", "7", "14"):
        labelled = standard["labelled"][number]
        (fold,) = make_split(acdc_cases, sorted(patients_of(labelled)), standard["val"])
        assert fold["train"] == sorted(labelled)
        assert fold["val"] == sorted(standard["val"])
        assert fold["unlabelled"] == sorted(set(standard["train"]) - set(labelled))


def test_tenth_of_seventy_training_patients_is_seven(acdc, acdc_cases):
    (fold,) = make_split(acdc_cases, 0.1, json.loads((acdc / "split.json").read_text())["val"])
    assert len(patients_of(fold["train"])) == 7 and len(fold["train"]) == 14
    assert len(fold["unlabelled"]) == 126


@given(
    number=st.integers(4, 30),
    visits=st.integers(1, 3),
    labelled=st.one_of(st.integers(1, 40), st.floats(0.01, 0.99)),
    val=st.one_of(st.integers(1, 40), st.floats(0.01, 0.99)),
    folds=st.integers(1, 6),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_parts_cover_all_cases_and_share_no_patient(
    number, visits, labelled, val, folds, seed, data
):
    cases = patients(number, visits)
    options = {"folds": folds, "seed": seed, "group_by": r"patient\d+"}
    try:
        split = make_split(cases, labelled, val, **options)
    except ValueError:
        return  # refusals have tests of their own; a split that is made must be right
    assert len(split) == folds
    for fold in split:
        assert set(fold) == PARTS and all(fold.values())
        assert sorted(case for part in fold.values() for case in part) == sorted(cases)
        assert sum(len(patients_of(part)) for part in fold.values()) == number
        if isinstance(labelled, int):
            assert len(patients_of(fold["train"])) == labelled
        if isinstance(val, int):
            assert len(patients_of(fold["val"])) == val
    assert len({tuple(fold["val"]) for fold in split}) == folds
    shuffled = data.draw(st.permutations(cases))
    assert make_split(shuffled, labelled, val, **options) == split


def test_a_number_that_is_a_name_too_is_said():
    groups = group_cases([str(n) for n in range(1, 9)], ".+")
    assert describe_numbers(["3"], ["0.2"], groups) == [
        "3 is taken for a number of labelled groups, not for the name 3."
    ]
    assert describe_numbers(["3", "4"], ["9"], groups) == []


@given(
    number=st.integers(3, 9), labelled=st.integers(1, 9), val=st.integers(1, 9),
    folds=st.integers(1, 3), data=st.data(),
)  # fmt: skip
def test_cases_without_a_label_are_unlabelled_or_left_out(number, labelled, val, folds, data):
    cases = patients(number)
    without = data.draw(st.lists(st.sampled_from(cases), unique=True, max_size=len(cases) - 1))
    try:
        split = make_split(
            cases, labelled, val, folds=folds, group_by=r"patient\d+", without_label=without
        )
    except ValueError:
        return
    for fold in split:
        assert not {*fold["train"], *fold["val"]} & set(without)
        left_out = set(cases) - {case for part in fold.values() for case in part}
        assert left_out == {c for c in without if patients_of([c]) <= patients_of(fold["val"])}
        assert not patients_of(fold["val"]) & patients_of([*fold["train"], *fold["unlabelled"]])
        assert all(fold.values()) and all(sorted(part) == part for part in fold.values())


def test_all_labelled_patients_may_be_used_where_images_without_a_label_are_left():
    """Five cases with a label and seven without one in imagesTr."""
    cases = [f"case_{i:03d}" for i in range(12)]
    (fold,) = make_split(cases, 3, 2, without_label=cases[5:])
    assert sorted([*fold["train"], *fold["val"]]) == cases[:5] and fold["unlabelled"] == cases[5:]
    with pytest.raises(ValueError, match="case_007 has no true label"):
        make_split(cases, ["case_007"], 2, without_label=cases[5:])


def test_another_seed_gives_another_split():
    assert make_split(patients(20), 3) != make_split(patients(20), 3, seed=1)


def test_folds_are_a_cross_validation():
    split = make_split(patients(20), 3, 0.2, folds=5)
    assert sorted(case for fold in split for case in fold["val"]) == patients(20)


def test_folds_with_named_validation_share_it_and_differ_in_labelled_patients():
    split = make_split(patients(14), 4, ["patient000", "patient001"], folds=3)
    assert {tuple(fold["val"]) for fold in split} == {tuple(patients(2))}
    labelled = [patients_of(fold["train"]) for fold in split]
    assert len(set.union(*labelled)) == 12, "three times four different patients"


def test_named_labelled_patients_are_never_drawn_for_validation():
    for fold in make_split(patients(5), ["patient002", "patient003"], 2, folds=3):
        assert patients_of(fold["train"]) == {"patient002", "patient003"}


@given(more=st.integers(2, 14), seed=st.integers(0, 5))
def test_fewer_labelled_patients_are_part_of_more(more, seed):
    small, large = (make_split(patients(20), n, seed=seed)[0] for n in (more - 1, more))
    assert small["val"] == large["val"] and set(small["train"]) < set(large["train"])


@pytest.mark.parametrize(
    ("word", "amount"), [("1", 1), ("1.0", 1.0), (".5", 0.5), ("p1", ["p1"]), ("1e3", ["1e3"]),
     ("001", ["001"]), ("0", 0)],
)  # fmt: skip
def test_decimal_point_tells_a_fraction_from_a_number(word, amount):
    parsed = parse_amount([word])
    assert parsed == amount and type(parsed) is type(amount)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labelled": 1.0}, "between 0 and 1"),
        ({"labelled": 0}, "At least one labelled group"),
        ({"labelled": 0.01}, r"At least one labelled group is needed, not 0 \(0.01 of 8 groups\)"),
        (
            {"labelled": 8},
            "8 labelled groups are wanted, but of 8",
        ),
        ({"labelled": 1, "val": 0}, "At least one validation group"),
        ({"labelled": 1, "val": 10}, "10 validation groups are wanted"),
        ({"labelled": 1, "val": 9}, "1 labelled groups are wanted, but of 1 "),
        ({"labelled": ["patient000"], "val": 9}, "9 validation groups are wanted, but of 9 "),
        ({"labelled": [f"patient00{i}" for i in range(9)], "val": ["patient009"]}, "unlabelled"),
        ({"labelled": ["patient000"], "val": ["patient000_frame01"]}, "patient000 is named both"),
        ({"labelled": ["patient08"]}, "no group or case patient08. The nearest is patient008"),
        ({"labelled": ["patient000"], "val": ["patient001"], "folds": 2}, "would be the same"),
        ({"labelled": 7, "val": ["patient001", "patient002"], "folds": 9}, "in 8 ways only"),
        ({"labelled": 1, "folds": 0}, "folds must be at least 1"),
        ({"labelled": 1, "seed": -1}, "seed must not be negative"),
        ({"labelled": 1, "group_by": r"patient00[0-8]"}, "no group in case patient009_frame00"),
        ({"labelled": 1, "group_by": "("}, "not a regular expression"),
    ],
)
def test_impossible_splits_are_refused_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_split(patients(10), **arguments)


def test_case_listed_twice_is_refused():
    with pytest.raises(ValueError, match="b is listed twice"):
        make_split(["a", "b", "b", "c", "d"], 1)


def test_brackets_in_the_pattern_name_the_group():
    assert group_cases(["x_a_1", "y_a_2"], r"_(a)_") == {"a": ["x_a_1", "y_a_2"]}


def test_installed_command_writes_what_nnunet_reads(folders):
    command = Path(sys.executable).with_name("nnUNetv2_plgcl_split")
    done = subprocess.run(
        [command, "-d", "27", "--labelled", "0.1", "--folds", "2", "--seed", "3"],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "80 groups by 'patient\\d+', guessed" in done.stdout
    assert "fold 1: labelled 12 cases of 6 groups, unlabelled 116 cases of 58" in done.stdout
    assert "seed 3" in done.stdout and str(folders / "splits_final.json") in done.stdout
    assert "nnUNetv2_train 27 2d 0 -tr nnUNetTrainerPLGCL" in done.stdout
    split = json.loads((folders / "splits_final.json").read_text())
    assert len(split) == 2 and all(set(fold) == PARTS for fold in split)
    assert {file.name for file in folders.iterdir()} == {
        "splits_final.json",
        "plgcl_groups.json",
        "plgcl_labels.json",
    }


def test_same_split_again_changes_nothing_and_another_needs_force(folders, capsys):
    file = folders / "splits_final.json"
    commands.split(["-d", "27", "--labelled", "7"])
    first = file.read_bytes()
    commands.split(["-d", "Dataset027_ACDC", "--labelled", "7"])
    assert "Nothing to do" in capsys.readouterr().out and file.read_bytes() == first
    assert "--force" in failure("-d", 27, "--labelled", 14)
    assert file.read_bytes() == first
    commands.split(["-d", "27", "--labelled", "14", "--force"])
    second = file.read_bytes()
    commands.split(["-d", "27", "--labelled", "3", "--force"])
    assert (folders / "splits_final.backup1.json").read_bytes() == first
    assert (folders / "splits_final.backup2.json").read_bytes() == second
    assert len(list(folders.glob("splits_final*"))) == 3


def test_named_case_brings_its_patient_and_the_command_says_so(folders, capsys):
    commands.split(["-d", "27", "--labelled", "patient002_frame01", "--val", "10"])
    assert (
        "patient002_frame01 brings the rest of patient002: patient002_frame02"
        in capsys.readouterr().out
    )
    (fold,) = json.loads((folders / "splits_final.json").read_text())
    assert fold["train"] == ["patient002_frame01", "patient002_frame02"]


def test_user_errors_are_one_line(folders, monkeypatch):
    assert "no dataset 28" in failure("-d", 28, "--labelled", 7)
    assert "no dataset Dataset027_Other" in failure("-d", "Dataset027_Other", "--labelled", 7)
    assert "no dataset heart" in failure("-d", "heart", "--labelled", 7)
    assert "labelled groups are wanted" in failure("-d", 27, "--labelled", 64)
    assert "'frame01' finds no group in case patient002_frame02" in failure(
        "-d", 27, "--labelled", 7, "--group-by", "frame01"
    )
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in failure("-d", 27, "--labelled", 7)


def test_labels_that_a_split_sets_aside_beside_images_un_are_said(folders, acdc, capsys):
    """Who has unlabelled images needs no split."""
    raw = folders.parents[1] / "raw" / "Dataset027_ACDC"
    raw.unlink()
    raw.mkdir()
    for part in ("imagesTr", "labelsTr", "dataset.json"):
        (raw / part).symlink_to(acdc / part)
    commands.split(["-d", "27", "--labelled", "0.1"])
    assert "Warning" not in capsys.readouterr().out
    (raw / "imagesUn").mkdir()
    shutil.copy(
        acdc / "imagesTr" / "patient002_frame01_0000.nii.gz",
        raw / "imagesUn" / "other_0000.nii.gz",
    )
    commands.split(["-d", "27", "--labelled", "0.1"])
    (fold,) = json.loads((folders / "splits_final.json").read_text())
    assert f"sets the labels of {len(fold['unlabelled'])} cases aside" in capsys.readouterr().out


def test_a_split_may_come_before_planning(folders, capsys):
    """So labels that users were told to write for unlabelled cases are said before hours pass."""
    folders.rmdir()
    commands.split(["-d", "27", "--labelled", "7"])
    train = "nnUNetv2_train 27 2d 0 -tr nnUNetTrainerPLGCL"
    next_ = f"Next: nnUNetv2_plan_and_preprocess -d 27 -c 2d && {train}"
    assert next_ in capsys.readouterr().out and (folders / "splits_final.json").is_file()
    (folders / "dataset.json").write_text("{}")  # as the planner leaves it
    commands.split(["-d", "27", "--labelled", "7"])
    assert f"Next: {train}" in capsys.readouterr().out


def test_failed_write_leaves_the_old_split_and_no_half_file(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text("old")
    with pytest.raises(TypeError):
        write_split(file, [{"train": [object()]}], force=True)  # type: ignore[list-item]
    assert file.read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_name_that_is_not_utf8_is_refused(folders, acdc):
    raw = folders.parents[1] / "raw" / "Dataset027_ACDC"
    raw.unlink()
    shutil.copytree(acdc, raw, copy_function=os.symlink)
    image = next((raw / "imagesTr").iterdir())
    (raw / "imagesTr" / os.fsdecode(b"patient\xff_0000.nii.gz")).symlink_to(image)
    (raw / "imagesTr" / os.fsdecode(b"notes\xff.txt")).touch()  # which nnU-Net passes over
    assert "not in UTF-8, 'patient\\udcff': nnU-Net cannot" in failure("-d", 27, "--labelled", 7)
