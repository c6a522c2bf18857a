from pathlib import Path

import pytest

from nnunetv2_plgcl.datasets.raw import cases_without_label, companions, images_by_case


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_what_belongs_to_a_case_or_is_no_image_is_passed_over(tmp_path):
    others = ("un0.json", "Thumbs.db", "notes.txt", "._un0_0000.tif", ".DS_Store")
    images = put(tmp_path / "imagesUn", "un0_0000.tif", "un1_0000.tif", *others)
    assert list(images_by_case(images, ".tif")) == ["un0", "un1"]
    assert companions(images, ".tif", ["un0", "un1"]) == {"un0": [images / "un0.json"]}


@pytest.mark.parametrize("name", ["x_0000.nii", "x_0000.jpg", "x_0000.TIFF", "x_0000.dcm"])
def test_an_image_of_another_format_is_named(tmp_path, name):
    """It would be left out in silence."""
    with pytest.raises(ValueError, match=f"{name} is not named as nnU-Net wants it"):
        images_by_case(put(tmp_path, "a_0000.tif", name), ".tif")


def test_a_link_that_leads_nowhere_is_named_where_nnunet_does_not_read_it(tmp_path):
    put(tmp_path, "a_0000.tif")
    (tmp_path / "b_0000.tif").symlink_to(tmp_path / "elsewhere.tif")
    with pytest.raises(ValueError, match="b_0000.tif is a link to what is not there"):
        images_by_case(tmp_path, ".tif")
    assert list(images_by_case(tmp_path, ".tif", ignore_others=True)) == ["a"], "raw data moved"


def test_cases_without_a_label(tmp_path):
    put(tmp_path / "labelsTr", "a.png", "._b.png")
    assert cases_without_label(tmp_path, {"file_ending": ".png"}, ["a", "b"]) == ["b"]
    (tmp_path / "labelsTr" / "a.png").unlink()
    assert cases_without_label(tmp_path, {"file_ending": ".png"}, ["a", "b"]) == [], "not at hand"
