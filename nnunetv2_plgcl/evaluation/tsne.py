"""How a trained network tells the classes apart: features of patches, in two dimensions by t-SNE.

The features are the encoder's, before any projection head, so that every network can be shown
beside every other: one trained with a contrastive loss, without one, or by nnU-Net itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor, nn

from nnunetv2_plgcl.contrast.embedding import EncoderFeatures, FeatureEmbedder
from nnunetv2_plgcl.contrast.guidance import LowestEntropyGuide
from nnunetv2_plgcl.contrast.patches import window_statistics
from nnunetv2_plgcl.datasets.description import class_names
from nnunetv2_plgcl.datasets.preprocessed import require_no_other_files
from nnunetv2_plgcl.model_files import load_model

BATCH = 8  # images encoded at once
LEAST_POINTS = 4  # below that t-SNE means nothing


@dataclass(frozen=True)
class PatchFeatures:
    """Features of M patches.

    Attributes:
        features: (M, F) float32.
        classes: (M,) int, index of the class that each patch was drawn for.
        class_names: by that index.
    """

    features: np.ndarray
    classes: np.ndarray
    class_names: tuple[str, ...]

    def silhouette(self) -> float:
        """Mean silhouette coefficient by cosine distance, -1 to 1: how well the classes separate
        before t-SNE. NaN where fewer than two classes have patches."""
        if not 1 < len(np.unique(self.classes)) < len(self.classes):
            return float("nan")
        return float(silhouette_score(self.features, self.classes, metric="cosine"))


@torch.no_grad()
def patch_features(
    network: nn.Module,
    images: Tensor,
    reference: Tensor,
    window: Sequence[int],
    patches_per_class: int,
    stages: Sequence[int] = (-2,),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of patches that a class covers by at least a quarter, averaged over its voxels.

    Args:
        network: with an encoder as ``EncoderFeatures`` wants it.
        images: (B, C, *spatial).
        reference: (B, K, *spatial), 1 where a voxel belongs to a class, else 0.
        window: edges of a patch in voxels.
        patches_per_class: drawn at random in each image; fewer where fewer qualify.
        stages: of the encoder, 0 the finest; their averages are concatenated.
        generator: source of randomness, on the device of ``reference``.

    Returns:
        (M, F) features and (M,) class indices.
    """
    encoder_features = EncoderFeatures(network, stages)
    try:
        network(images)
        features = encoder_features.take()
    finally:
        encoder_features.remove()
    # in a reference every window is sure, so the lowest entropy is a draw among all that qualify
    statistics = window_statistics(reference, window)
    windows = LowestEntropyGuide()(statistics, patches_per_class, generator=generator)
    averages = FeatureEmbedder(nn.Identity())(images, features, reference, windows)
    classes = torch.arange(reference.shape[1], device=reference.device)
    return averages[windows.valid], classes[:, None].expand_as(windows.valid)[windows.valid]


def features_of_model(
    model_folder: str | Path,
    fold: int | str,
    cases: Sequence[str],
    *,
    checkpoint: str = "checkpoint_final.pth",
    images: int = 64,
    patches_per_class: int = 2,
    window_fraction: float = 0.25,
    stages: Sequence[int] = (-2,),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PatchFeatures:
    """Patch features of a trained nnU-Net model, whichever trainer made it.

    Args:
        model_folder: as ``nnUNetv2_train`` writes it, with plans.json and fold folders.
        fold: whose weights.
        cases: preprocessed cases with labels, such as those of the validation.
        checkpoint: file in the fold's folder.
        images: training-sized patches of the cases to draw from, as nnU-Net's loader cuts them.
        patches_per_class: in each of them.
        window_fraction: edge of a patch as a share of the training patch's edge.
        stages: of the encoder, 0 the finest.
        seed: of the choice of images and patches, the same for every model of the dataset.
        device: to encode on.

    Raises:
        FileNotFoundError: no such model, or the cases are not preprocessed for it.
        NotImplementedError: a network without a usable encoder.
    """
    if not (Path(model_folder) / f"fold_{fold}" / checkpoint).is_file():
        raise FileNotFoundError(f"There is no {checkpoint} in {model_folder}/fold_{fold}.")
    predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
    load_model(predictor, Path(model_folder), fold, checkpoint)
    # bare: a hook added to a compiled network may not be called
    network = getattr(predictor.network, "_orig_mod", predictor.network).to(device).eval()
    labels, loader = predictor.label_manager, _loader(predictor, cases)
    patch_size = predictor.configuration_manager.patch_size
    window = [max(1, round(edge * window_fraction)) for edge in patch_size]
    generator = torch.Generator(device=device).manual_seed(seed)
    features, classes = [], []
    state = np.random.get_state()  # the loader's source of randomness
    np.random.seed(seed)
    try:
        for _ in range(-(-images // BATCH)):
            batch = next(loader)
            found = patch_features(
                network,
                batch["data"].to(device),
                reference_maps(batch["target"], labels).to(device),
                window,
                patches_per_class,
                stages,
                generator,
            )
            features.append(found[0].cpu().numpy())
            classes.append(found[1].cpu().numpy())
    finally:
        np.random.set_state(state)
    foreground = class_names(predictor.dataset_json)
    names = foreground if labels.has_regions else ["background", *foreground]
    return PatchFeatures(np.concatenate(features), np.concatenate(classes), tuple(names))


def reference_maps(segmentation: Tensor, labels: LabelManager) -> Tensor:
    """One map per class or region, 1 inside and 0 outside; ignored voxels are outside of all.

    Args:
        segmentation: (B, 1, *spatial), as nnU-Net preprocesses it.
        labels: of the dataset.

    Returns:
        (B, K, *spatial) float32.
    """
    classes: Sequence[Any] = labels.foreground_regions if labels.has_regions else labels.all_labels
    known = segmentation[:, 0].clamp(min=0)  # -1 is background outside of the image
    maps = [torch.isin(known, torch.tensor(label, dtype=known.dtype)) for label in classes]
    return torch.stack(maps, 1).float()


def tsne_figure(
    models: Mapping[str, PatchFeatures], file: str | Path, seed: int = 0, perplexity: float = 30
) -> None:
    """Draw one panel a model, one dot a patch, coloured by class, and write a picture.

    Each panel's title gives the silhouette coefficient of the features themselves: t-SNE keeps
    neighbours, not distances.

    Args:
        models: by the name to show.
        file: of any kind that matplotlib writes.
        seed: of t-SNE.
        perplexity: of t-SNE; lowered where there are few patches.

    Raises:
        ValueError: a model with too few patches.
    """
    for name, patches in models.items():
        if len(patches.classes) < LEAST_POINTS:
            raise ValueError(
                f"{name} has {len(patches.classes)} patches, t-SNE needs {LEAST_POINTS} or more. "
                f"Take more images or cases."
            )
    figure, axes = plt.subplots(
        1, len(models), figsize=(5 * len(models), 5), squeeze=False, layout="constrained"
    )
    for axis, (name, patches) in zip(axes[0], models.items(), strict=True):
        points = tsne(patches.features, seed, perplexity)
        for index, class_name in enumerate(patches.class_names):
            axis.scatter(*points[patches.classes == index].T, s=8, label=class_name)
        axis.set(xticks=[], yticks=[], title=f"{name}\nsilhouette {patches.silhouette():.2f}")
    axes[0, 0].legend()
    FigureCanvasAgg(figure)  # draws without a display, whatever the user's backend
    figure.savefig(file, dpi=150)
    plt.close(figure)


def tsne(features: np.ndarray, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """(M, F) to (M, 2) by scikit-learn's t-SNE, cosine distances."""
    model = TSNE(
        perplexity=min(perplexity, (len(features) - 1) / 3),
        metric="cosine",
        init="random",
        random_state=seed,
    )
    points: np.ndarray = model.fit_transform(features)
    return points


def _loader(predictor: nnUNetPredictor, cases: Sequence[str]) -> nnUNetDataLoader:
    """Patches of the network's size, each with foreground."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    if configuration.previous_stage_name is not None:
        raise NotImplementedError("the second stage of a cascade sees more than the image.")
    folder = Path(nnUNet_preprocessed) / plans.dataset_name / configuration.data_identifier
    missing = [case for case in cases if not (folder / f"{case}.pkl").is_file()]
    if missing or not cases:
        raise FileNotFoundError(
            f"Not preprocessed in {folder}: {', '.join(missing) or 'no case was named'}. Run "
            f"nnUNetv2_preprocess for this dataset and configuration."
        )
    require_no_other_files(folder)
    dataset = infer_dataset_class(str(folder))(str(folder), list(cases))
    size = configuration.patch_size
    return nnUNetDataLoader(
        dataset, BATCH, size, size, predictor.label_manager, oversample_foreground_percent=1
    )
