"""Two views of one crop: the same geometry, two intensities.

The teacher sees the weak view, the student the strong one. Both come out of one spatial
transform, so voxel i of one shows the same tissue as voxel i of the other. Source: poster step 4
(weak and strong view), the strengths are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import (
    ApplyRandomBinaryOperatorTransform,
)
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

OF_FIRST_STAGE = (
    ApplyRandomBinaryOperatorTransform,
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)


class WeakStrongViews(BasicTransform):
    """Replaces ``image`` (C, *spatial) by the weak view and its strong ones, (2C, *spatial) where
    there is one of them.

    Args:
        geometry: what all views share (crop, rotation, scaling, mirroring).
        intensity: what only the strong view gets; must not move voxels.
        masked_channels: channels normalised inside a non-zero mask. Where their weak view is
            exactly 0, outside that mask, the strong view stays 0, as in nnU-Net.
        strong_views: how many; 0 for the weak view alone.
        image_channels: the first ones, whose intensities change; None for all. Those behind them,
            the first stage's segmentation in a cascade, are alike in every view.
    """

    def __init__(
        self,
        geometry: BasicTransform,
        intensity: BasicTransform,
        masked_channels: Sequence[int] = (),
        strong_views: int = 1,
        image_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.intensity = intensity
        self.masked_channels = tuple(masked_channels)
        self.strong_views = strong_views
        self.image_channels = image_channels

    def apply(self, data_dict: dict, **params: object) -> dict:
        data_dict = self.geometry(**data_dict)
        weak = data_dict["image"]
        data_dict["image"] = torch.cat(
            (weak, *(self._strong(weak) for _ in range(self.strong_views)))
        )
        return data_dict

    def _strong(self, weak: torch.Tensor) -> torch.Tensor:
        image = weak[: self.image_channels]
        # intensity transforms change their input in place
        strong = self.intensity(image=image.clone())["image"]
        for channel in self.masked_channels:
            strong[channel][weak[channel] == 0] = 0
        return strong if len(image) == len(weak) else torch.cat((strong, weak[len(image) :]))


class CutOut(BlankRectangleTransform):
    """Blanks the same rectangles in every channel, so that no channel gives the others away."""

    def get_parameters(self, image: torch.Tensor, **kwargs: object) -> dict:
        one = super().get_parameters(image=image[:1], **kwargs)
        return {name: value * image.shape[0] for name, value in one.items()}


def geometry_of(transforms: ComposeTransforms) -> ComposeTransforms:
    """The part of nnU-Net's training transforms that both views share: everything but the random
    intensity changes; also what changes the first stage's segmentation in a cascade."""
    return ComposeTransforms([t for t in transforms.transforms if not _changes_intensity(t)])


def _changes_intensity(transform: BasicTransform) -> bool:
    return (
        isinstance(transform, RandomTransform)
        and isinstance(transform.transform, ImageOnlyTransform)
        and not isinstance(transform.transform, OF_FIRST_STAGE)
    )


class MarkOutside(BasicTransform):
    """Sets the segmentation to -1 where all of these channels are exactly 0, as preprocessing does
    outside the mask inside which they were normalised. Unlabelled cases come without."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)

    def apply(self, data_dict: dict, **params: object) -> dict:
        outside = (data_dict["image"][self.channels] == 0).all(0)
        data_dict["segmentation"][:, outside] = -1
        return data_dict


def marking_outside(
    transforms: ComposeTransforms, masked_channels: Sequence[int]
) -> ComposeTransforms:
    """nnU-Net's training transforms for images without a label: what lies outside the mask of
    normalisation is marked before intensities change, so that nnU-Net sets it back to 0."""
    steps = list(transforms.transforms)
    if masked_channels:
        first = next((n for n, step in enumerate(steps) if _changes_intensity(step)), len(steps))
        steps.insert(first, MarkOutside(masked_channels))
    return ComposeTransforms(steps)


def strong_intensity(patch_size: Sequence[int], cutout_probability: float) -> ComposeTransforms:
    """Intensity changes wider and more frequent than nnU-Net's own, then cut-out.

    Args:
        patch_size: edge lengths of the training patch, voxels. Cut-out blanks one to three
            rectangles with edges between an eighth and a third of it, to 0 (the mean after
            z-scoring).
        cutout_probability: of cut-out in an image; 0 leaves it away.
    """
    rectangle = tuple((max(1, edge // 8), max(1, edge // 3) + 1) for edge in patch_size)
    changes: list[tuple[float, BasicTransform]] = [
        (0.3, GaussianNoiseTransform(noise_variance=(0, 0.2), synchronize_channels=True)),
        (0.4, GaussianBlurTransform(blur_sigma=(0.5, 1.5), p_per_channel=1)),
        (0.5, MultiplicativeBrightnessTransform(BGContrast((0.5, 1.5)), False, p_per_channel=1)),
        (0.5, ContrastTransform(BGContrast((0.5, 1.5)), True, False, p_per_channel=1)),
        (0.2, GammaTransform(BGContrast((0.5, 2.0)), 1, False, 1, p_retain_stats=1)),
        (0.5, GammaTransform(BGContrast((0.5, 2.0)), 0, False, 1, p_retain_stats=1)),
    ]
    if cutout_probability > 0:  # a probability of 0 would draw random numbers all the same
        blank = CutOut(rectangle, rectangle_value=0, num_rectangles=(1, 4))
        changes.append((cutout_probability, blank))
    return ComposeTransforms([RandomTransform(t, apply_probability=p) for p, t in changes])


def make_deterministic(transform: BasicTransform) -> BasicTransform:
    """Stop Gaussian blurs from choosing their algorithm by a stopwatch.

    batchgeneratorsv2 times convolution against FFT and keeps the faster; the two differ in the
    last bits, so a continued training would not repeat an undisturbed one.
    """
    if isinstance(transform, ComposeTransforms):
        for child in transform.transforms:
            make_deterministic(child)
    elif isinstance(transform, RandomTransform):
        make_deterministic(transform.transform)
    elif isinstance(transform, GaussianBlurTransform):
        transform.benchmark = False
    return transform
