"""What is compared: the request of a user, and what it means for this dataset. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw

from nnunetv2_plgcl.datasets.description import read_plans
from nnunetv2_plgcl.datasets.files import dataset_name, nnunet_folder
from nnunetv2_plgcl.datasets.raw import images_at_hand, images_by_case
from nnunetv2_plgcl.evaluation.folds import Fold, read_fold
from nnunetv2_plgcl.evaluation.launch import Job, is_predicted
from nnunetv2_plgcl.evaluation.runs import Run


@dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
        dataset: number or name.
        configuration, plans: of nnU-Net.
        folds: of splits_final.json, or "all".
        trainers: the first is what the others are compared with.
        output: folder.
        test: folders of test images and of their references; None for the validation cases.
        run: train and predict what is missing.
        seeds: repetitions.
        launcher: "local" or "slurm".
        slurm: options for sbatch.
        jobs: trainings at once with the launcher "local".
        device: to train and predict on.
        voxel: distances in voxels instead of mm.
        trust_split: see ``refuse.require_alike``.
        postprocessing: compare what nnU-Net's own postprocessing makes of the predictions.
        processes: worker processes of the evaluation.
    """

    dataset: str
    configuration: str
    folds: Sequence[int | str]
    trainers: Sequence[str]
    output: Path
    plans: str = "nnUNetPlans"
    test: tuple[Path, Path] | None = None
    run: bool = False
    seeds: int = 1
    launcher: str = "local"
    slurm: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 1
    device: str = "cuda"
    voxel: bool = False
    trust_split: bool = False
    postprocessing: bool = False
    processes: int = 4


@dataclass(frozen=True)
class Plan:
    """A request with what it means.

    Attributes:
        request: of the user.
        name: full name of the dataset.
        plans, dataset: content of the plans file and of dataset.json.
        folds: of the request, with their cases.
        runs: one for each fold, seed and trainer.
        images: files of the images that are compared, by case; none where the raw images are not
            at hand.
        references: folder of their references.
    """

    request: Request
    name: str
    plans: dict[str, Any]
    dataset: dict[str, Any]
    folds: dict[int | str, Fold]
    runs: list[Run]
    images: dict[str, list[Path]]
    references: Path

    @property
    def own_references(self) -> Path:
        """Folder of the references of the dataset's own cases."""
        return nnunet_folder("nnUNet_preprocessed") / self.name / "gt_segmentations"

    @property
    def cases(self) -> dict[int | str, list[str]]:
        """Those that are compared, by fold."""
        if self.request.test:
            return dict.fromkeys(self.folds, sorted(self.images))
        return {number: fold.validation for number, fold in self.folds.items()}

    @property
    def predictions(self) -> dict[Run, Path]:
        """Where the predictions of each run lie, or will lie."""
        if not self.request.test:
            return {run: run.validation for run in self.runs}
        return {run: self.request.output / "predictions" / run.name for run in self.runs}

    def missing(self) -> list[Job]:
        """What has to be trained or predicted."""
        device, test = self.request.device, self.request.test
        if not test:
            return [Job(run, device) for run in self.runs if not run.is_finished()]
        return [
            Job(run, device, str(test[0]), str(folder))
            for run, folder in self.predictions.items()
            if not (run.is_finished() and is_predicted(run, self.images, folder))
        ]


def make_plan(request: Request) -> Plan:
    """Read what the request names.

    Raises:
        ValueError, FileNotFoundError: no such dataset, plans, configuration, fold, or test images.
    """
    name = dataset_name(request.dataset)
    plans, dataset = read_plans(name, request.plans, request.configuration)
    folds = {fold: read_fold(plans, request.configuration, fold) for fold in request.folds}
    runs = [
        Run(name, trainer, request.plans, request.configuration, fold, seed)
        for fold in request.folds
        for seed in range(request.seeds)
        for trainer in request.trainers
    ]
    if request.test:
        images = images_by_case(request.test[0], dataset["file_ending"])
        references = request.test[1]
    else:
        images = images_at_hand(Path(nnUNet_raw) / name, dataset) if nnUNet_raw.is_set() else {}
        references = nnunet_folder("nnUNet_preprocessed") / name / "gt_segmentations"
    return Plan(request, name, plans, dataset, folds, runs, images, references)
