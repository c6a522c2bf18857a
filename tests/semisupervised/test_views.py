import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import (
    nnUNetTrainerNoDA,
)

from nnunetv2_plgcl.semisupervised.settings import StrongViewSettings
from nnunetv2_plgcl.semisupervised.views import (
    CutOut,
    WeakStrongViews,
    geometry_of,
    make_deterministic,
    marking_outside,
    strong_intensity,
)
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher


def nnunet_transforms(patch_size=(64, 64), mask=None):
    axes = tuple(range(len(patch_size)))
    angle = (-np.pi / 6, np.pi / 6)
    return nnUNetTrainer.get_training_transforms(
        patch_size, angle, None, axes, False, use_mask_for_norm=mask
    )


class Remember(ImageOnlyTransform):
    """Keeps what it was given, then spoils it in place."""

    def _apply_to_image(self, img: torch.Tensor, **params: object) -> torch.Tensor:
        self.given = img.clone()
        return img.fill_(float("nan"))


def coordinates(*shape: int) -> torch.Tensor:
    """An image whose channels are the coordinates of each voxel."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))


@pytest.mark.parametrize("patch_size", [(64, 64), (12, 24, 24)])
def test_both_views_have_the_same_coordinates(patch_size):
    intensity = Remember()
    views = WeakStrongViews(geometry_of(nnunet_transforms(patch_size)), intensity)
    larger = [n + 10 for n in patch_size]
    for seed in range(5):
        np.random.seed(seed), torch.manual_seed(seed)
        out = views(image=coordinates(*larger), segmentation=torch.zeros(1, *larger))
        weak, strong = out["image"].chunk(2)
        assert weak.shape[1:] == tuple(patch_size)
        torch.testing.assert_close(intensity.given, weak, rtol=0, atol=0)
        assert strong.isnan().all() and not weak.isnan().any(), "the weak view must be a copy"


def test_strong_intensities_move_nothing_on_real_mri(acdc):
    """The phase correlation of weak and strong view peaks at zero displacement."""
    file = acdc / "imagesTr" / "patient021_frame01_0000.nii.gz"
    volume = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32)
    slice_ = torch.from_numpy((volume[4] - volume[4].mean()) / volume[4].std())[None]
    changes = strong_intensity(slice_.shape[1:], StrongViewSettings().cutout_probability)
    for seed in range(20):
        np.random.seed(seed), torch.manual_seed(seed)
        strong = changes(image=slice_.clone())["image"]
        spectrum = torch.fft.fft2(slice_[0]) * torch.fft.fft2(strong[0] - strong.mean()).conj()
        correlation = torch.fft.ifft2(spectrum / spectrum.abs().clamp_min(1e-9)).real
        assert correlation.argmax() == 0


def test_strong_view_changes_more_than_nnunet_on_average(acdc):
    file = acdc / "imagesTr" / "patient021_frame01_0000.nii.gz"
    volume = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32)
    slice_ = torch.from_numpy((volume[4] - volume[4].mean()) / volume[4].std())[None]
    stock = nnunet_transforms(slice_.shape[1:])
    stock.transforms = [t for t in stock.transforms if t not in geometry_of(stock).transforms]

    def mean_change(transforms):
        changes = []
        for seed in range(40):
            np.random.seed(seed), torch.manual_seed(seed)
            changes.append((transforms(image=slice_.clone())["image"] - slice_).abs().mean())
        return torch.stack(changes).mean()

    assert mean_change(
        strong_intensity(slice_.shape[1:], StrongViewSettings().cutout_probability)
    ) > 2 * mean_change(stock)


def test_geometry_keeps_what_moves_voxels_and_drops_what_changes_intensity():
    names = [type(t).__name__ for t in geometry_of(nnunet_transforms(mask=[True])).transforms]
    assert names == ["SpatialTransform", "MirrorTransform", "MaskImageTransform",
                     "RemoveLabelTransform"]  # fmt: skip


def test_outside_the_nonzero_mask_both_views_stay_zero():
    image = torch.randn(2, 32, 32)
    image[:, :, :10] = 0

    class Identity(BasicTransform):
        def apply(self, data_dict: dict, **params: object) -> dict:
            return data_dict

    class Brighter(ImageOnlyTransform):
        def _apply_to_image(self, img: torch.Tensor, **params: object) -> torch.Tensor:
            return img + 1

    views = WeakStrongViews(Identity(), Brighter(), masked_channels=[0])
    strong = views(image=image)["image"][2:]
    assert (strong[0, :, :10] == 0).all() and (strong[1, :, :10] == 1).all()
    torch.testing.assert_close(strong[0, :, 10:], image[0, :, 10:] + 1)


def test_outside_the_nonzero_mask_nnunets_own_intensities_leave_zeros_too(acdc):
    """Of a slice without a label, as of one whose segmentation is -1 there."""
    file = acdc / "imagesTr" / "patient021_frame01_0000.nii.gz"
    volume = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32)
    slice_ = volume[4, 60:160, 60:160]
    image = torch.from_numpy((slice_ - slice_.mean()) / slice_.std())[None]
    image[:, :, :30] = 0
    no_label = torch.zeros(1, *image.shape[1:])
    labelled = no_label.clone()
    labelled[:, :, :30] = -1
    own = nnunet_transforms((100, 100), [True])
    views = WeakStrongViews(marking_outside(own, [0]), own, [0], strong_views=0)
    changed = 0
    for seed in range(30):
        np.random.seed(seed), torch.manual_seed(seed)
        unlabelled = views(image=image.clone(), segmentation=no_label.clone())["image"]
        np.random.seed(seed), torch.manual_seed(seed)
        expected = own(image=image.clone(), segmentation=labelled.clone())["image"]
        np.random.seed(seed), torch.manual_seed(seed)
        unmarked = own(image=image.clone(), segmentation=no_label.clone())["image"]
        outside = expected == 0
        # interpolation leaves something of the image beside the mask's border
        assert (unlabelled[outside] == 0).float().mean() > 0.95
        torch.testing.assert_close(unlabelled[~outside], expected[~outside])
        changed += (unmarked[outside] == 0).float().mean() < 0.5
    assert changed > 5, "without the mark intensities outside would have changed"


def test_augmentation_of_another_trainer_of_nnunets_can_be_mixed_in():
    class Mixed(nnUNetTrainerMeanTeacher, nnUNetTrainerNoDA):
        pass

    def names(trainer_class):
        trainer = object.__new__(trainer_class)
        transforms = trainer.get_training_transforms((32, 32), None, False, (), False)
        return [type(transform).__name__ for transform in transforms.transforms]

    assert names(Mixed) == names(nnUNetTrainerNoDA) != names(nnUNetTrainerMeanTeacher)


def test_cut_out_blanks_the_same_rectangles_in_every_channel():
    np.random.seed(0)
    out = CutOut(((4, 9), (4, 9)), rectangle_value=0, num_rectangles=(1, 4))(
        image=torch.ones(3, 32, 32)
    )["image"]
    assert (out == out[:1]).all() and 16 <= (out[0] == 0).sum() <= 3 * 64


def test_blurs_do_not_choose_their_algorithm_by_time():
    transforms = make_deterministic(nnunet_transforms())
    blurs = [t.transform for t in transforms.transforms if isinstance(t, RandomTransform)]
    blurs = [t for t in blurs if isinstance(t, GaussianBlurTransform)]
    assert len(blurs) == 1 and not blurs[0].benchmark
