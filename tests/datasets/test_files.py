import pytest

from nnunetv2_plgcl.datasets.files import dataset_number


def test_numbers_of_datasets_may_have_any_length():
    numbers = {"Dataset027_ACDC": 27, "Dataset1234_X": 1234, "Dataset005_2d": 5}
    assert {name: dataset_number(name) for name in numbers} == numbers
    with pytest.raises(ValueError, match="Heart is no name of a dataset"):
        dataset_number("Heart")
