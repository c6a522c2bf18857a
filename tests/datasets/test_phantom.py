import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_dilation, label

from nnunetv2_plgcl.datasets.groups import group_cases, guess_group_pattern
from nnunetv2_plgcl.datasets.phantom import CLASSES, SHAPE, phantom_volume, write_phantom


@pytest.fixture(scope="module")
def volumes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom_volume(0, patient, bool(f)) for patient in range(16) for f in range(2)]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_same_seed_gives_the_same_volume_and_each_patient_differs(volumes):
    image, reference = phantom_volume(0, 3, True)
    np.testing.assert_array_equal(image, volumes[7][0])
    np.testing.assert_array_equal(reference, volumes[7][1])
    assert image.shape == reference.shape == SHAPE
    assert len({hashlib.sha256(image.tobytes()).digest() for image, _ in volumes}) == 32
    assert len({hashlib.sha256(ref.tobytes()).digest() for _, ref in volumes}) == 32


def test_every_volume_has_all_classes_well_inside_the_image(volumes):
    for _, reference in volumes:
        assert set(np.unique(reference)) == {0, *CLASSES}
        for plane in np.moveaxis(reference, 0, -1)[[0, -1]], reference[:, :, [0, -1]]:
            assert not plane.any()


def test_left_ventricle_is_one_piece_enclosed_by_myocardium(volumes):
    for _, reference in volumes:
        for plane in reference:
            cavity = plane == 3
            assert label(cavity)[1] == 1
            rim = binary_dilation(cavity) & ~cavity
            assert (plane[rim] == 2).all()


def test_right_ventricle_touches_myocardium_only(volumes):
    for _, reference in volumes:
        rim = binary_dilation(reference == 1) & (reference != 1)
        assert set(np.unique(reference[rim])) == {0, 2}


def test_contraction_empties_the_left_ventricle_of_the_same_patient(volumes):
    for (_, relaxed), (_, contracted) in zip(volumes[::2], volumes[1::2], strict=True):
        assert 0.2 < (contracted == 3).sum() / (relaxed == 3).sum() < 0.8
        np.testing.assert_array_equal(relaxed >= 2, contracted >= 2)


def test_no_intensity_tells_the_classes_apart(volumes):
    """The best classifier that sees intensities alone, told each volume's own histograms."""
    scores = []
    for image, reference in volumes:
        bins = np.digitize(image, np.quantile(image, np.linspace(0, 1, 65)[1:-1]))
        counts = np.stack([np.bincount(bins[reference == k], minlength=64) for k in range(4)])
        guess = counts.argmax(axis=0)[bins]
        scores.append([dice(guess == k, reference == k) for k in CLASSES])
    assert np.mean(scores, axis=0).max() < 0.5


def test_dataset_is_what_nnunet_reads(tmp_path: Path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder = tmp_path / "Dataset001_Phantom"
    cases = write_phantom(folder, training=2, test=1)
    verify_dataset_integrity(str(folder), num_processes=1)
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == len(cases) == 4
    assert len(list((folder / "imagesTs").iterdir())) == 2
    assert len(list((folder / "labelsTs").iterdir())) == 2
    assert len(group_cases(cases, guess_group_pattern(cases))) == 2
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{cases[0]}_0000.nii.gz"))
    assert image.GetSpacing() == (1.5, 1.5, 8.0) and image.GetSize() == (96, 96, 10)
