"""What ``nnUNetv2_plgcl_pseudolabel`` is asked for, and what it means for the dataset.

Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.check.start import find_trainer
from nnunetv2_plgcl.datasets.description import read_dataset, read_plans, values_of
from nnunetv2_plgcl.datasets.files import dataset_name, nnunet_folder, read_group_pattern
from nnunetv2_plgcl.evaluation.folds import ALL, read_fold
from nnunetv2_plgcl.evaluation.launch import require_device
from nnunetv2_plgcl.evaluation.runs import FINAL, Run
from nnunetv2_plgcl.pseudolabels.dataset import require_free
from nnunetv2_plgcl.pseudolabels.sources import Sources, read_sources
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised

STOCK = "nnUNetTrainer"


@dataclass(frozen=True)
class Request:
    """What to label, and with which model.

    Attributes:
        dataset: number or name.
        configuration, trainer, fold, plans: of the model.
        device: to predict on, and to train on between rounds.
        output: folder for predictions, record and page.
        filter: "largest" makes islands background: what is not the largest component of its
            class. "confidence" has components of a low mean probability ignored in training.
        min_confidence: of components, see ``filter``, and of cases: less sure ones are left out.
        new_dataset: number of the dataset to write, the first of several rounds; None for none.
        rounds: predictions; before the second and each later one a model is trained on the
            dataset of the round before.
        processes: for preprocessing between rounds.
    """

    dataset: str
    configuration: str
    trainer: str
    fold: int | str
    plans: str = "nnUNetPlans"
    device: str = "cuda"
    output: Path = Path("plgcl_pseudolabels")
    filter: str = "confidence"
    min_confidence: float = 0.7
    new_dataset: int | None = None
    rounds: int = 1
    processes: int = 4


class Work:
    """What a request means for this dataset; labels of unlabelled cases are not looked for."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.name = dataset_name(request.dataset)
        self.plans, _ = read_plans(self.name, request.plans, request.configuration)
        self.raw = nnunet_folder("nnUNet_raw") / self.name
        self.dataset = read_dataset(self.raw / "dataset.json")
        self.pattern = read_group_pattern(nnunet_folder("nnUNet_preprocessed") / self.name)
        self.model = Run(
            self.name, request.trainer, request.plans, request.configuration, request.fold, 0
        )

    @cached_property
    def sources(self) -> Sources:
        """Cases and their files."""
        fold = read_fold(self.plans, self.request.configuration, self.request.fold)
        return read_sources(self.raw, self.dataset, fold, self.pattern)

    @property
    def settings(self) -> dict[str, Any]:
        """That decide what becomes of a prediction."""
        return {"filter": self.request.filter, "min_confidence": self.request.min_confidence}

    @property
    def next_trainer(self) -> str:
        """In the new dataset no case is unlabelled, so a trainer that needs such gives way."""
        found = find_trainer(self.request.trainer)
        return STOCK if issubclass(found, nnUNetTrainerSemiSupervised) else self.request.trainer

    @property
    def new_fold(self) -> int | str:
        return ALL if self.request.fold == ALL else 0

    @cached_property
    def new_dataset(self) -> dict[str, Any]:
        """dataset.json with an ignore label, if components may be ignored."""
        labels = dict(self.dataset["labels"])
        if self.request.filter == "confidence" and "ignore" not in labels:
            labels["ignore"] = max(set().union(*map(values_of, labels.values()))) + 1
        kept = {key: value for key, value in self.dataset.items() if key != "dataset"}
        return {**kept, "labels": labels}

    def refuse(self) -> None:
        """Everything that can be known before hours of prediction."""
        request = self.request
        if request.rounds > 1 and request.new_dataset is None:
            raise ValueError("--iterate trains on what was labelled, so it needs --new-dataset.")
        find_trainer(request.trainer)
        for number in range(request.rounds if request.new_dataset is not None else 0):
            assert request.new_dataset is not None
            head = {**self.settings, "round": number + 1}
            if number == 0:
                head["model"] = name_of_model(self.model)
            require_free(request.new_dataset + number, self.name, head)
        if not (self.model.folder / FINAL).is_file():
            raise FileNotFoundError(
                f"There is no trained model {self.model.folder / FINAL}. Train it first: "
                f"nnUNetv2_train {self.name} {request.configuration} {request.fold} "
                f"-tr {request.trainer} -p {request.plans}"
            )
        require_device(request.device)
        _ = self.sources  # every case has its files


def name_of_model(run: Run) -> str:
    """Its folder inside nnUNet_results, wherever that lies today."""
    return str(run.folder.relative_to(nnunet_folder("nnUNet_results")))
