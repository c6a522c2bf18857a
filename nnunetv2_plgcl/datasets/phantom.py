"""A phantom of short-axis cardiac images, for demonstrations and tests without data.

Patients differ as real ones do: in the place, size and shape of the heart, in what is wrong with
it, in the scan (contrast, sharpness, noise, inhomogeneity of the coil), and in what lies around the
heart. There vessels, stomach or bowel resemble ventricles and myocardium, and a patient has few
kinds of these or none. So a few labelled patients do not show what the others look like. Blood
pools and lookalikes share intensities, and so do myocardium and their walls: a class is told by its
place among the others. Source: ours; it resembles ACDC in its classes, groups of patients and
artefacts, and claims nothing about real hearts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt, gaussian_filter

SHAPE = (10, 96, 96)  # slices, rows, columns
SPACING = (8.0, 1.5, 1.5)  # mm, in the order of SHAPE
CLASSES = {1: "RV", 2: "myocardium", 3: "LV"}
FRAMES = ("frame01", "frame02")  # relaxed, contracted

Range = tuple[float, float]


@dataclass(frozen=True)
class Group:
    """What patients with one diagnosis have in common. Lengths in pixels."""

    cavity: Range  # radius of the left ventricle
    wall: Range  # thickness of the myocardium
    rv_size: Range  # of the right ventricle, as a multiple of the left one's outer radius
    contraction: Range  # radius of the cavity in the second frame, as a share of that in the first
    thinning: Range = (0.0, 0.0)  # share of the wall that is lost in its thinnest place


GROUPS = {  # as in ACDC
    "healthy": Group((7.5, 10.5), (3.5, 5.0), (0.85, 1.05), (0.55, 0.7)),
    "dilated": Group((10.0, 12.0), (3.5, 4.5), (0.75, 1.0), (0.75, 0.85)),
    "hypertrophic": Group((6.0, 8.0), (6.0, 8.0), (0.7, 0.9), (0.5, 0.6)),
    "infarcted": Group((9.0, 12.0), (4.0, 5.5), (0.8, 1.05), (0.7, 0.8), (0.3, 0.55)),
    "right ventricle": Group((7.0, 9.0), (3.5, 5.0), (1.15, 1.4), (0.6, 0.75)),
}


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
    scar: tuple[float, float]  # share of the wall that is lost there, and its direction


@dataclass(frozen=True)
class Lookalike:
    """One kind of what lies around the heart and resembles a part of it. Lengths in pixels,
    intensities are those of blood, about 1; None is that of muscle."""

    radius: Range  # of the core
    core: float | None  # intensity
    wall: Range = (0.0, 0.0)  # thickness
    rim: float | None = None  # intensity of the wall
    stretch: Range = (1.0, 1.4)  # ratio of the axes
    twin: bool = False  # two cores side by side


LOOKALIKES = {
    "vessels": Lookalike((3, 5), 1.0),
    "aorta": Lookalike((7, 10), 1.0, (3, 5)),
    "stomach": Lookalike((7, 10), 0.95, stretch=(1.3, 2.0)),
    "bowel": Lookalike((4.5, 6.5), 1.0, (2.5, 4), twin=True),
    "pouch": Lookalike((3, 5), 1.0, (5, 7)),
    "loops": Lookalike((5, 7), 1.0, twin=True),
    "fat": Lookalike((5, 8), None, (3, 5), 0.95),
    "cyst": Lookalike((6, 9), 0.75, (2, 4)),
}
KINDS_OF_PATIENT = (0, 1, 2, 2)  # how many, each as likely
LOOKALIKES_OF_VOLUME = (8, 14)  # where there is room
GAP = 7.0  # pixels between the heart and any lookalike


@dataclass(frozen=True)
class Scan:
    """What one patient's images look like. Intensities are those of blood, about 1."""

    muscle: float  # mean of the myocardium
    right: float  # mean of the right ventricle
    surroundings: float  # mean around the heart
    variety: float  # of the surroundings
    lookalikes: tuple[str, ...]  # keys of LOOKALIKES
    texture: float  # of tissue inside the heart
    blur: float  # of the pixels, sigma in pixels
    bias: float  # inhomogeneity of the coil, in powers of e
    gamma: float  # of the intensities, 1 for linear
    noise: float  # sigma


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""
    group = list(GROUPS.values())[rng.integers(len(GROUPS))]
    return Anatomy(
        centre=(rng.uniform(38, 58), rng.uniform(42, 60)),
        drift=(rng.normal(0, 0.5), rng.normal(0, 0.5)),
        cavity=rng.uniform(*group.cavity),
        wall=rng.uniform(*group.wall),
        ellipticity=rng.uniform(1.0, 1.35),
        rotation=rng.uniform(0, np.pi),
        lobes=tuple((rng.uniform(0, 0.07), rng.uniform(0, 2 * np.pi)) for _ in range(3)),
        rv_angle=np.pi + rng.normal(0, 0.5),
        rv_size=rng.uniform(*group.rv_size),
        contraction=rng.uniform(*group.contraction),
        scar=(rng.uniform(*group.thinning), rng.uniform(0, 2 * np.pi)),
    )


def random_scan(rng: np.random.Generator) -> Scan:
    """Draw what a patient's images look like."""
    muscle = rng.uniform(0.35, 0.5)
    return Scan(
        muscle=muscle,
        right=rng.uniform(0.9, 1.06),
        surroundings=muscle + rng.uniform(-0.28, -0.05),
        variety=rng.uniform(0.1, 0.3),
        texture=rng.uniform(0.03, 0.08),
        blur=rng.uniform(0.5, 0.9),
        bias=rng.uniform(0.2, 0.6),
        gamma=float(np.exp(rng.uniform(-0.2, 0.2))),
        noise=rng.uniform(0.01, 0.05),
        lookalikes=tuple(rng.permutation(list(LOOKALIKES))[: rng.choice(KINDS_OF_PATIENT)]),
    )


def label_volume(anatomy: Anatomy, contracted: bool) -> np.ndarray:
    """The patient's reference segmentation, uint8 of shape ``SHAPE`` with ``CLASSES``."""
    label = np.zeros(SHAPE, np.uint8)
    loss, direction = anatomy.scar
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
            label[z][_ellipse(anatomy, rv_centre)[0] < rv_radius] = 1
        distance, angle = _ellipse(anatomy, centre)
        thinned = loss * np.clip(np.cos(angle - direction), 0, None) ** 2
        label[z][distance < outer] = 2
        label[z][distance < cavity + thinned * (outer - cavity)] = 3
    return label


def _ellipse(anatomy: Anatomy, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (rows, columns) from a centre, measured so that the outline is a level set, and
    direction, in radians from the long axis."""
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    dy, dx = y - centre[0], x - centre[1]
    cos, sin = np.cos(anatomy.rotation), np.sin(anatomy.rotation)
    stretch = np.sqrt(anatomy.ellipticity)
    u, v = (cos * dx + sin * dy) / stretch, (cos * dy - sin * dx) * stretch
    angle = np.arctan2(v, u)
    wobble = sum(
        size * np.cos(order * angle + phase) for order, (size, phase) in enumerate(anatomy.lobes, 2)
    )
    return np.hypot(u, v) / (1 + wobble), angle


def image_volume(label: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
    """Image of a reference segmentation, float32 of the same shape, in arbitrary units.

    Partial volume, lookalikes, a bias field and Rician noise (the magnitude of a complex signal
    with Gaussian noise) are added.
    """
    tissue = scan.surroundings + scan.variety * _smooth_noise(rng, (0.7, 7, 7))
    tissue = np.clip(tissue, 0.05, 1.2)
    if scan.lookalikes:
        taken = distance_transform_edt(~label.any(0)) < GAP
        for i in range(rng.integers(*LOOKALIKES_OF_VOLUME)):
            kind = LOOKALIKES[scan.lookalikes[i % len(scan.lookalikes)]]
            _add_lookalike(tissue, taken, kind, scan.muscle, rng)
    means = np.array([0.0, scan.right, scan.muscle, 1.0])
    heart = means[label] + scan.texture * _smooth_noise(rng, (0.5, 3, 3))
    tissue = np.where(label > 0, heart, tissue)
    blurred = gaussian_filter(tissue, (0.4, scan.blur, scan.blur)).clip(0)
    signal = blurred**scan.gamma * np.exp(scan.bias * _smooth_noise(rng, (6, 30, 30)))
    noise = rng.normal(0, scan.noise, (2, *label.shape))
    return (1000 * np.hypot(signal + noise[0], noise[1])).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, scale: tuple[float, float, float]) -> np.ndarray:
    """Gaussian random field of the given correlation length, within about -0.5 to 0.5."""
    field = gaussian_filter(rng.normal(size=SHAPE), scale, mode="nearest")
    return (field - field.mean()) / (4 * field.std())


def _add_lookalike(
    tissue: np.ndarray, taken: np.ndarray, kind: Lookalike, muscle: float, rng: np.random.Generator
) -> None:
    """Draw one into some slices, if there is room.

    Args:
        tissue: intensities, of shape ``SHAPE``, changed in place.
        taken: (rows, columns), where there is no room, changed in place.
        kind: of the lookalike.
        muscle: intensity.
        rng: its numbers.
    """
    radius, wall, stretch = (rng.uniform(*r) for r in (kind.radius, kind.wall, kind.stretch))
    angle = rng.uniform(0, np.pi)
    reach = (radius * (1 + kind.twin) + wall) * np.sqrt(stretch)
    room = np.argwhere(distance_transform_edt(~taken) > reach + 1)
    if len(room) == 0:
        return
    middle = rng.uniform(0, SHAPE[0])
    row, column = room[rng.integers(len(room))]
    height = rng.uniform(2, 5)  # slices
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    dy, dx = y - row, x - column
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (cos * dx + sin * dy) / np.sqrt(stretch), (cos * dy - sin * dx) * np.sqrt(stretch)
    distance = np.hypot(np.abs(u) - radius if kind.twin else u, v)
    size = np.sqrt(np.clip(1 - ((z - middle) / height) ** 2, 0, 1))  # of the cross-section
    distance = np.where(size > 0.3, distance / np.maximum(size, 0.3), np.inf)
    brightness = rng.uniform(0.93, 1.07)
    taken |= (distance < radius + wall + 1).any(0)
    tissue[distance < radius + wall] = brightness * (muscle if kind.rim is None else kind.rim)
    tissue[distance < radius] = brightness * (muscle if kind.core is None else kind.core)


def phantom_volume(seed: int, patient: int, contracted: bool) -> tuple[np.ndarray, np.ndarray]:
    """One frame of one patient.

    Args:
        seed: of the whole dataset.
        patient: number of the patient; both frames share anatomy and scan.
        contracted: the second frame, with a smaller cavity inside a thicker wall.

    Returns:
        Image, float32, and reference segmentation, uint8, both of shape ``SHAPE``.
    """
    of_patient = np.random.default_rng((seed, patient))
    anatomy, scan = random_anatomy(of_patient), random_scan(of_patient)
    label = label_volume(anatomy, contracted)
    return image_volume(label, scan, np.random.default_rng((seed, patient, 1 + contracted))), label


def write_phantom(folder: Path, training: int = 16, test: int = 5, seed: int = 0) -> list[str]:
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
