"""A phantom of short-axis cardiac images, for demonstrations and tests without data.

Patients differ in place, size, shape and contrast. Blood pools and distractors share intensities,
as do myocardium and surroundings, so a class is told by its place among the others. Source: ours;
it resembles ACDC in its classes and artefacts and claims nothing about real hearts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

SHAPE = (10, 96, 96)  # slices, rows, columns
SPACING = (8.0, 1.5, 1.5)  # mm, in the order of SHAPE
CLASSES = {1: "RV", 2: "myocardium", 3: "LV"}
FRAMES = ("frame01", "frame02")  # relaxed, contracted


@dataclass(frozen=True)
class Anatomy:
    """One patient's heart, relaxed. Lengths in pixels, angles in radians."""

    centre: tuple[float, float]  # row, column at mid-height
    drift: tuple[float, float]  # of the centre, from slice to slice
    cavity: float  # radius of the left ventricle
    wall: float  # thickness of the myocardium
    ellipticity: float  # ratio of the axes
    rotation: float  # of the long axis
    lobes: tuple[tuple[float, float], ...]  # amplitude and phase of the outline's harmonics
    rv_angle: float  # direction in which the right ventricle lies
    rv_size: float  # as a multiple of the left ventricle's outer radius
    contraction: float  # of the cavity in the second frame


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""
    return Anatomy(
        centre=(rng.uniform(38, 58), rng.uniform(40, 60)),
        drift=(rng.normal(0, 0.5), rng.normal(0, 0.5)),
        cavity=rng.uniform(7, 13),
        wall=rng.uniform(3.5, 6.5),
        ellipticity=rng.uniform(1.0, 1.35),
        rotation=rng.uniform(0, np.pi),
        lobes=tuple((rng.uniform(0, 0.07), rng.uniform(0, 2 * np.pi)) for _ in range(3)),
        rv_angle=np.pi + rng.normal(0, 0.5),
        rv_size=rng.uniform(0.8, 1.2),
        contraction=rng.uniform(0.55, 0.8),
    )


def label_volume(anatomy: Anatomy, contracted: bool) -> np.ndarray:
    """The patient's reference segmentation, uint8 of shape ``SHAPE`` with ``CLASSES``."""
    label = np.zeros(SHAPE, np.uint8)
    for z, height in enumerate(np.linspace(-1, 1, SHAPE[0])):
        taper = np.sqrt(1 - 0.75 * ((height + 1) / 2) ** 2)  # base to apex
        outer = (anatomy.cavity + anatomy.wall) * taper
        cavity = anatomy.cavity * taper * (anatomy.contraction if contracted else 1.0)
        centre = np.array(anatomy.centre) + z * np.array(anatomy.drift)
        rv_centre = centre + 0.95 * outer * np.array(
            [np.sin(anatomy.rv_angle), np.cos(anatomy.rv_angle)]
        )
        rv_radius = anatomy.rv_size * outer * (0.85 if contracted else 1.0)
        if height < 0.8:  # the right ventricle ends above the apex
            label[z][_ellipse(anatomy, rv_centre) < rv_radius] = 1
        distance = _ellipse(anatomy, centre)
        label[z][distance < outer] = 2
        label[z][distance < cavity] = 3
    return label


def _ellipse(anatomy: Anatomy, centre: np.ndarray) -> np.ndarray:
    """Distance (rows, columns) from a centre, measured so that the outline is a level set."""
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    dy, dx = y - centre[0], x - centre[1]
    cos, sin = np.cos(anatomy.rotation), np.sin(anatomy.rotation)
    stretch = np.sqrt(anatomy.ellipticity)
    u, v = (cos * dx + sin * dy) / stretch, (cos * dy - sin * dx) * stretch
    angle = np.arctan2(v, u)
    wobble = sum(
        size * np.cos(order * angle + phase) for order, (size, phase) in enumerate(anatomy.lobes, 2)
    )
    return np.hypot(u, v) / (1 + wobble)


def image_volume(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Image of a reference segmentation, float32 of the same shape, in arbitrary units.

    Tissue means differ between volumes; partial volume, distractors, a bias field and Rician
    noise (the magnitude of a complex signal with Gaussian noise) are added.
    """
    blood, muscle = rng.uniform(0.7, 0.95), rng.uniform(0.3, 0.5)
    surroundings = muscle + 0.5 * _smooth_noise(rng, (0.7, 7, 7)) - rng.uniform(0.0, 0.1)
    tissue = np.clip(surroundings, 0.05, 0.9)
    for _ in range(rng.integers(7, 12)):
        _add_distractor(tissue, blood, muscle, rng)
    means = np.array([0.0, blood * rng.uniform(0.85, 1.05), muscle, blood])
    tissue = np.where(label > 0, means[label] + 0.12 * _smooth_noise(rng, (0.5, 3, 3)), tissue)
    blurred = gaussian_filter(tissue, (0.4, 0.9, 0.9))
    signal = blurred * np.exp(0.7 * _smooth_noise(rng, (6, 30, 30)))
    sigma = rng.uniform(0.06, 0.11)
    noise = rng.normal(0, sigma, (2, *label.shape))
    return (1000 * np.hypot(signal + noise[0], noise[1])).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, scale: tuple[float, float, float]) -> np.ndarray:
    """Gaussian random field of the given correlation length, within about -0.5 to 0.5."""
    field = gaussian_filter(rng.normal(size=SHAPE), scale, mode="nearest")
    return (field - field.mean()) / (4 * field.std())


def _add_distractor(
    tissue: np.ndarray, blood: float, muscle: float, rng: np.random.Generator
) -> None:
    """Draw a vessel or a bowel loop, bright as blood, at times with a wall, into some slices."""
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    centre, radius = rng.uniform((0, 4, 4), np.array(SHAPE) - (0, 4, 4)), rng.uniform(3, 9)
    stretch = rng.uniform(0.7, 1.4)
    distance = np.hypot((y - centre[1]) * stretch, (x - centre[2]) / stretch)
    distance = np.hypot(distance, 2.5 * (z - centre[0]))
    if rng.random() < 0.5:
        tissue[distance < radius + rng.uniform(2, 5)] = muscle
    tissue[distance < radius] = blood * rng.uniform(0.8, 1.1)


def phantom_volume(seed: int, patient: int, contracted: bool) -> tuple[np.ndarray, np.ndarray]:
    """One frame of one patient.

    Args:
        seed: of the whole dataset.
        patient: number of the patient; both frames share the anatomy.
        contracted: the second frame, with a smaller cavity inside a thicker wall.

    Returns:
        Image, float32, and reference segmentation, uint8, both of shape ``SHAPE``.
    """
    anatomy = random_anatomy(np.random.default_rng((seed, patient)))
    label = label_volume(anatomy, contracted)
    return image_volume(label, np.random.default_rng((seed, patient, 1 + contracted))), label


def write_phantom(folder: Path, training: int = 12, test: int = 4, seed: int = 0) -> list[str]:
    """Write a dataset in nnU-Net's raw layout, two volumes a patient.

    Args:
        folder: e.g. ``nnUNet_raw/Dataset001_Phantom``; made if absent.
        training: patients in ``imagesTr`` and ``labelsTr``.
        test: further patients in ``imagesTs`` and ``labelsTs``.
        seed: not negative.

    Returns:
        Training cases, e.g. ``patient001_frame01``.
    """
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    cases: dict[str, list[str]] = {"Tr": [], "Ts": []}
    for patient in range(1, training + test + 1):
        part = "Tr" if patient <= training else "Ts"
        for contracted, frame in enumerate(FRAMES):
            case = f"patient{patient:03d}_{frame}"
            image, label = phantom_volume(seed, patient, bool(contracted))
            _write(image, folder / f"images{part}" / f"{case}_0000.nii.gz")
            _write(label, folder / f"labels{part}" / f"{case}.nii.gz")
            cases[part].append(case)
    generate_dataset_json(
        str(folder),
        channel_names={0: "MRI"},
        labels={"background": 0, **{name: value for value, name in CLASSES.items()}},
        num_training_cases=len(cases["Tr"]),
        file_ending=".nii.gz",
        license="CC0-1.0",
        converted_by="nnunetv2_plgcl.datasets.phantom",
    )
    return cases["Tr"]


def _write(volume: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = sitk.GetImageFromArray(volume)
    picture.SetSpacing(SPACING[::-1])
    sitk.WriteImage(picture, str(file))
