from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_plgcl.evaluation.overlay import (
    COLOURS,
    overlay_figure,
    slice_with_most_foreground,
)


def square(size: int = 20) -> np.ndarray:
    segmentation = np.zeros((size, size), np.uint8)
    segmentation[5:15, 5:15] = 1
    segmentation[8:12, 8:12] = 2
    return segmentation


def drawn(figure) -> np.ndarray:
    """Pixels (Y, X, RGB) in 0 to 1."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255


def pixels_like(pixels: np.ndarray, colour: str) -> int:
    return int((abs(pixels - matplotlib.colors.to_rgb(colour)).max(-1) < 0.1).sum())


def colour_of(contour) -> str:
    return matplotlib.colors.to_hex(contour.get_edgecolor()[0]).upper()


def test_slice_with_most_foreground_counts_all_classes():
    volume = np.zeros((4, 8, 8), np.uint8)
    volume[1, :3] = 3
    volume[2, :2], volume[2, 2:4] = 1, 2
    assert slice_with_most_foreground(volume) == 2


def test_each_class_is_drawn_in_its_colour_around_its_border():
    classes = {1: "ring", 2: "core"}
    figure = overlay_figure(np.random.default_rng(0).random((20, 20)), {"a": square()}, classes)
    extents = {
        colour_of(contour): contour.get_paths()[0].get_extents()
        for contour in figure.axes[1].collections
    }
    assert set(extents) == set(COLOURS[:2])
    np.testing.assert_allclose(extents[COLOURS[0]].get_points(), [[4.5, 4.5], [14.5, 14.5]])
    np.testing.assert_allclose(extents[COLOURS[1]].get_points(), [[7.5, 7.5], [11.5, 11.5]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ring", "core"]
    assert all(pixels_like(drawn(figure), colour) > 20 for colour in COLOURS[:2])


def test_absent_classes_keep_their_legend_and_others_their_colour():
    figure = overlay_figure(np.zeros((20, 20)), {"a": square() * 2}, {1: "one", 2: "two"})
    (contour,) = figure.axes[1].collections
    assert colour_of(contour) == COLOURS[1]


def test_one_panel_a_segmentation_with_its_title_after_the_image():
    figure = overlay_figure(np.zeros((20, 20)), {"reference": square(), "ours": square()}, {})
    assert [axes.get_title() for axes in figure.axes] == ["image", "reference", "ours"]


def test_pixels_are_as_high_and_wide_as_in_the_body():
    figure = overlay_figure(np.zeros((10, 40)), {}, {1: "x"}, spacing=(4.0, 1.0))
    drawn(figure)
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(1.0, rel=0.02)


def test_other_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"ours has shape \(3, 3\)"):
        overlay_figure(np.zeros((20, 20)), {"ours": np.zeros((3, 3))}, {})


def test_real_slice_becomes_a_png(acdc: Path, tmp_path: Path):
    case = "patient002_frame01"
    volume, reference = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(acdc / f"{name}.nii.gz")))
        for name in (f"imagesTr/{case}_0000", f"labelsTr/{case}")
    )
    z = slice_with_most_foreground(reference)
    figure = overlay_figure(
        volume[z], {"reference": reference[z]}, {1: "RV", 2: "myocardium", 3: "LV"}
    )
    assert all(pixels_like(drawn(figure), colour) > 20 for colour in COLOURS[:3])
    figure.savefig(tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
