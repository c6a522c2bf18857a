import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunetv2_plgcl.semisupervised.loaders import UnlabelledDataset, unlabelled_dataset


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
