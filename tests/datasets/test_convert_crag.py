"""The folders of CRAG, histology in RGB."""

import json
import shutil

import numpy as np
import pytest
from converting import convert, failure, make_crag, names
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image


@pytest.mark.parametrize("test_name", ["valid", "test"])
def test_crag(nnunet_folders, in_this_process, test_name):
    source = make_crag(nnunet_folders / "crag", test_name=test_name)
    convert("crag", source, "-d", 6)
    raw = nnunet_folders / "raw" / "Dataset006_CRAG"
    image, _ = NaturalImage2DIO().read_images([str(raw / "imagesTr" / "train_2_0000.png")])
    original = np.asarray(Image.open(source / "train" / "Images" / "train_2.png"))
    np.testing.assert_array_equal(image[:, 0].transpose(1, 2, 0), original)
    label, _ = NaturalImage2DIO().read_seg(str(raw / "labelsTs" / "test_1.png"))
    instances = np.asarray(Image.open(source / test_name / "Annotation" / "test_1.png"))
    np.testing.assert_array_equal(label[0, 0], instances > 0)
    verify_dataset_integrity(str(raw), num_processes=1)


def test_crag_protocol_takes_the_official_test_set(nnunet_folders, in_this_process):
    source = make_crag(nnunet_folders / "crag", range(1, 174))
    for number in range(41, 174):
        for kind in ("Images", "Annotation"):
            (source / "valid" / kind / f"test_{number}.png").unlink()
    convert("crag", source, "-d", 6, "--protocol", "paper")
    splits = json.loads(
        (nnunet_folders / "preprocessed" / "Dataset006_CRAG" / "splits_final.json").read_text()
    )
    assert [len(fold["train"]) for fold in splits] == [16, 31]
    assert len(names(nnunet_folders / "raw" / "Dataset006_CRAG" / "labelsTs")) == 40


def test_names_that_collide(nnunet_folders, in_this_process):
    source = make_crag(nnunet_folders / "crag")
    for kind in ("Images", "Annotation"):
        shutil.copy(
            source / "train" / kind / "train_1.png", source / "valid" / kind / "train_1.png"
        )
    assert "would both become train_1: rename one" in failure("crag", source, "-d", 6)
    assert names(nnunet_folders / "raw") == []
