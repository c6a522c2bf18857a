import os

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_plgcl.semisupervised.loaders import (
    UnlabelledDataset,
    divide_workers,
    unlabelled_dataset,
    workers_of_nnunet,
)


def test_images_are_those_of_nnunet_and_nothing_else_is_read(prepared):
    case = prepared.split["unlabelled"][0]
    expected, _, _, _ = nnUNetDatasetBlosc2(str(prepared.case_folder), [case]).load_case(case)
    expected = expected[:]
    for suffix in ("_seg.b2nd", ".pkl"):
        (prepared.case_folder / f"{case}{suffix}").unlink()
    dataset = UnlabelledDataset({case: prepared.case_folder})
    image, placeholder, previous, properties = dataset.load_case(case)
    np.testing.assert_array_equal(image[:], expected)
    assert placeholder.shape == (1, *expected.shape[1:]) and not placeholder.any()
    assert previous is None and properties == {"class_locations": {}}


def test_other_file_formats_are_refused_with_the_command_that_mends_it(prepared):
    with pytest.raises(NotImplementedError, match="nnUNetv2_preprocess -d D -c 2d -plans_name P"):
        unlabelled_dataset(
            ["a"], [], prepared.case_folder, prepared.base, nnUNetDatasetNumpy, "D", "2d", "P"
        )


@pytest.mark.parametrize(
    ("workers", "labelled", "unlabelled", "expected"),
    [(12, 4, 4, (6, 6)), (12, 7, 1, (10, 2)), (12, 1, 30, (1, 11)), (1, 4, 4, (1, 1)),
     (0, 4, 4, (0, 0))],
)  # fmt: skip
def test_workers_for_unlabelled_patches_come_out_of_nnunets_number(
    workers, labelled, unlabelled, expected, monkeypatch
):
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert divide_workers(labelled, unlabelled) == expected


def test_nnunets_number_of_workers_is_another_one_inside_only(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for outside in (None, "7"):
        monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
        if outside:
            monkeypatch.setenv("nnUNet_n_proc_DA", outside)
        with pytest.raises(ZeroDivisionError), workers_of_nnunet(3):
            assert get_allowed_n_proc_DA() == 3
            raise ZeroDivisionError
        assert os.environ.get("nnUNet_n_proc_DA") == outside
