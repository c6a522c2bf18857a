import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from PIL import Image
from training import make_trainer, tiny

from nnunetv2_plgcl.evaluation.tsne import (
    PatchFeatures,
    features_of_model,
    patch_features,
    reference_maps,
    tsne,
    tsne_figure,
)
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def clusters(number: int = 3, each: int = 40) -> PatchFeatures:
    generator = np.random.default_rng(0)
    directions = np.eye(number, 8)
    classes = np.repeat(np.arange(number), each)
    features = directions[classes] + 0.05 * generator.normal(size=(number * each, 8))
    return PatchFeatures(features.astype(np.float32), classes, ("a", "b", "c"))


@pytest.fixture
def model(prepared):
    def train(trainer_class):
        trainer = make_trainer(tiny(trainer_class, 1, 2), prepared)
        trainer.run_training()
        return trainer

    return train


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerPLGCL, nnUNetTrainer])
def test_features_of_a_trained_model_are_those_of_its_network(prepared, model, trainer_class):
    trainer = model(trainer_class)
    folder, cases = trainer.output_folder_base, prepared.split["val"]
    patches = features_of_model(folder, 0, cases, images=8)
    assert patches.class_names == tuple(prepared.dataset_json()["labels"])
    assert patches.features.shape == (len(patches.classes), 16)  # the second of 8, 16, 32
    assert (np.bincount(patches.classes, minlength=4) > 0).all()
    again = features_of_model(folder, 0, cases, images=8)
    np.testing.assert_array_equal(again.features, patches.features)
    other = features_of_model(folder, 0, cases, images=8, seed=1)
    assert (
        other.features.shape != patches.features.shape or (other.features != patches.features).any()
    )
    # the checkpoint's weights decide, not those of a fresh network
    file = f"{folder}/fold_0/checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    for tensor in checkpoint["network_weights"].values():
        tensor.mul_(0.5)
    torch.save(checkpoint, file)
    assert (features_of_model(folder, 0, cases, images=8).features != patches.features).any()


def test_features_are_averages_over_the_class_inside_a_window():
    class Doubling(torch.nn.Module):
        output_channels = (1,)

        def forward(self, image):
            return [2 * image]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Doubling()

        def forward(self, image):
            return self.encoder(image)[0]

    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 8)
    reference = torch.zeros(1, 2, 8, 8)
    reference[0, 0, :, :3], reference[0, 1, :, 3:] = 1, 1
    features, classes = patch_features(Network(), image, reference, (8, 8), 1, stages=(0,))
    assert classes.tolist() == [0, 1]
    expected = [2 * image[..., :3].mean(), 2 * image[..., 3:].mean()]
    torch.testing.assert_close(features[:, 0], torch.stack(expected))


def test_reference_maps_of_labels_and_of_regions():
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    segmentation = torch.tensor([[[[-1, 0, 1, 2, 3]]]])
    labels = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
    assert reference_maps(segmentation, labels)[0, :, 0].tolist() == [
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
    ]
    regions = LabelManager({"background": 0, "whole": [1, 2], "b": 2}, [1, 2])
    assert reference_maps(segmentation, regions)[0, :, 0].tolist() == [
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 0],
    ]


def test_silhouette_tells_separate_classes_from_mixed_ones():
    patches = clusters()
    assert patches.silhouette() > 0.9
    mixed = PatchFeatures(patches.features, np.arange(120) % 3, patches.class_names)
    assert abs(mixed.silhouette()) < 0.1
    assert np.isnan(PatchFeatures(patches.features, np.zeros(120, int), ("a",)).silhouette())


def test_neighbours_in_the_picture_are_of_one_class_where_the_features_are():
    patches = clusters()
    points = tsne(patches.features)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(120)
    assert (patches.classes[distances.argmin(1)] == patches.classes).all()
    np.testing.assert_array_equal(tsne(patches.features), points)


def test_the_figure_has_one_panel_a_model(tmp_path):
    tsne_figure({"one": clusters()}, tmp_path / "one.png")
    tsne_figure({"one": clusters(), "two": clusters(2, 10)}, tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == 2 * one.width and two.height == one.height
        colours = {colour for _, colour in one.convert("RGB").getcolors(1 << 20)}
    assert len(colours) > 3, "dots of three classes"


def test_too_few_patches_are_refused(tmp_path):
    few = PatchFeatures(np.ones((3, 2), np.float32), np.arange(3), ("a", "b", "c"))
    with pytest.raises(ValueError, match="model X has 3 patches, t-SNE needs 4"):
        tsne_figure({"model X": few}, tmp_path / "figure.png")


def test_missing_models_and_cases_are_named(prepared, model):
    trainer = model(nnUNetTrainerPLGCL)
    folder = trainer.output_folder_base
    with pytest.raises(FileNotFoundError, match=r"no checkpoint_final.pth in .*fold_1"):
        features_of_model(folder, 1, prepared.split["val"])
    with pytest.raises(FileNotFoundError, match="patient999.*nnUNetv2_preprocess"):
        features_of_model(folder, 0, ["patient999"])
    with pytest.raises(FileNotFoundError, match="no case was named"):
        features_of_model(folder, 0, [])


def test_three_dimensional_networks_have_features_too():
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    network = PlainConvUNet(1, 2, (4, 6), torch.nn.Conv3d, 3, (1, 2), 1, 3, 1)
    reference = torch.zeros(2, 3, 8, 16, 16)
    reference[:, 0, :4], reference[:, 1, 4:6], reference[:, 2, 6:] = 1, 1, 1
    features, classes = patch_features(
        network, torch.randn(2, 1, 8, 16, 16), reference, (4, 8, 8), 2
    )
    assert features.shape == (len(classes), 4) and set(classes.tolist()) == {0, 1, 2}
