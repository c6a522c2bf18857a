"""What is said of images and labels, and what is noted of an image."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from checking import raw_image, rewrite
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_plgcl.datasets import cache as cache_module
from nnunetv2_plgcl.datasets import summary as summary_module
from nnunetv2_plgcl.datasets.check.images import check_images, check_spacing_files
from nnunetv2_plgcl.datasets.check.labels import check_labels
from nnunetv2_plgcl.datasets.check.parts import check_parts
from nnunetv2_plgcl.datasets.summary import ImageSummary, read_summary, summaries, summarise


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


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spacing_that_cannot_be(spacing):
    images = {"a": image(), "b": image(digest="b", spacing=(1.0, 1.0, spacing))}
    found = texts(check_images(parts(["a"], ["b"]), images, 1), "error")
    assert "Case b: voxel spacing" in found and "Correct the header" in found


def test_labels_that_dataset_json_names_twice_or_orders_otherwise():
    dataset = {
        "labels": {"background": 0, "a": 1, "b": 1, "c": 2},
        "regions_class_order": [1, 2, 5],
    }
    found = texts(check_labels({}, dataset), "warning")
    assert "names [1] a and b" in found and '"regions_class_order" of dataset.json has 5' in found


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
    for edited in ({"values": {"mean": None}}, {"values": 5}, {"checksum": 5}, {"checksum": None}):
        content = json.loads(cache.read_text())
        content[cases[1]] |= edited
        cache.write_text(json.dumps(content))
        assert summaries(files, SimpleITKIO, cache, 1) == again


def test_worker_processes_find_the_same(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "IN_THIS_PROCESS", 1)
    files = {case: [raw_image(prepared, case)] for case in prepared.split["unlabelled"]}
    alone = summaries(files, SimpleITKIO, tmp_path / "a.json", 1)
    assert summaries(files, SimpleITKIO, tmp_path / "b.json", 2) == alone
