import pytest

from nnunetv2_plgcl.datasets.files import dataset_name, dataset_number, is_name


def test_numbers_of_datasets_may_have_any_length():
    numbers = {"Dataset027_ACDC": 27, "Dataset1234_X": 1234, "Dataset005_2d": 5}
    assert {name: dataset_number(name) for name in numbers} == numbers
    with pytest.raises(ValueError, match="Heart is no name of a dataset"):
        dataset_number("Heart")


def test_a_dataset_of_four_digits_is_not_that_of_its_first_three(tmp_path, monkeypatch):
    (tmp_path / "Dataset1234_Heart").mkdir()
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path))
    assert dataset_name("1234") == "Dataset1234_Heart"
    for other in ("123", "Dataset1234_heart"):
        with pytest.raises(ValueError, match=f"no dataset {other} in"):
            dataset_name(other)


@pytest.mark.parametrize("text", ["../a", "/a", "a/b", "a\\b", "..", ".", "", None, 1])
def test_a_path_is_no_name(text):
    assert is_name("p1.2 a") and not is_name(text)
