"""The steps of ``nnUNetv2_plgcl_pseudolabel``: predict, score, filter, write; again for each round.

Source: ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess as preprocess_dataset
from tqdm import tqdm

from nnunetv2_plgcl.datasets.check.start import find_trainer
from nnunetv2_plgcl.datasets.description import read_dataset, read_plans, values_of
from nnunetv2_plgcl.datasets.files import (
    dataset_name,
    dataset_number,
    nnunet_folder,
    read_group_pattern,
    read_json,
    states_of,
    write_json,
)
from nnunetv2_plgcl.evaluation.evaluate import class_names
from nnunetv2_plgcl.evaluation.folds import ALL, read_fold
from nnunetv2_plgcl.evaluation.launch import Job, launch_local, require_device
from nnunetv2_plgcl.evaluation.pictures import label_names
from nnunetv2_plgcl.evaluation.runs import FINAL, Run
from nnunetv2_plgcl.pseudolabels.dataset import require_free, write_dataset
from nnunetv2_plgcl.pseudolabels.page import write_page
from nnunetv2_plgcl.pseudolabels.predict import MirroredPredictor, Prediction
from nnunetv2_plgcl.pseudolabels.record import CORRECTED, PSEUDO, RECORD, checksum, entry
from nnunetv2_plgcl.pseudolabels.sources import Sources, read_sources
from nnunetv2_plgcl.semisupervised.components import confident, filter_volume, largest
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised

STOCK = "nnUNetTrainer"
FILTERS = ("none", "largest", "confidence")
UNSURE = "unsure"  # name of the ignore label in pictures


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


@dataclass(frozen=True)
class Result:
    """What a round has made.

    Attributes:
        cases: of the record: kind, checksum, confidence, reason.
        left_out: unlabelled cases without a pseudo-label in the new dataset, and why.
        dataset: full name of the new one, or None.
        files: record and page.
        following: what to run next.
    """

    cases: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    dataset: str | None
    files: list[Path]
    following: str


def pseudolabel(request: Request) -> Result:
    """Do what ``nnUNetv2_plgcl_pseudolabel`` does.

    Raises:
        ValueError, FileNotFoundError: what is missing or contradicts itself.
        RuntimeError: a prediction or a training failed.
        NotImplementedError: second stage of a cascade.
    """
    work = Work(request)
    work.refuse()
    result = label_round(request, work, work.model, 1)
    for number in range(2, request.rounds + 1):
        assert request.new_dataset is not None and result.dataset is not None  # -> refuse
        model = train_on(result.dataset, work)
        this = replace(request, new_dataset=request.new_dataset + number - 1)
        result = label_round(this, work, model, number)
    return result


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
        for number in range(request.rounds if request.new_dataset is not None else 0):
            assert request.new_dataset is not None
            require_free(request.new_dataset + number)
        if not (self.model.folder / FINAL).is_file():
            raise FileNotFoundError(
                f"There is no trained model {self.model.folder / FINAL}. Train it first: "
                f"nnUNetv2_train {self.name} {request.configuration} {request.fold} "
                f"-tr {request.trainer} -p {request.plans}"
            )
        require_device(request.device)
        _ = self.sources, self.next_trainer


def label_round(request: Request, work: Work, model: Run, number: int) -> Result:
    """Predict with one model, and write what it gives.

    Args:
        request: with the number of this round's dataset.
        work: of the first round.
        model: trained.
        number: of the round, from 1.
    """
    output = request.output if number == 1 else request.output / f"round_{number}"
    folder = output / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    sources, ending = work.sources, work.dataset["file_ending"]
    settings = {"filter": request.filter, "min_confidence": request.min_confidence}
    head = {
        "model": str(model.folder), "states": states_of([model.folder / FINAL]),
        "round": number, **settings,
    }  # fmt: skip
    cases = predict_all(output / RECORD, head, model, work, folder)
    left_out = dict(sources.left_out)
    for case, of in cases.items():
        if of["kind"] == PSEUDO and of["confidence"] < request.min_confidence:
            left_out[case] = f"confidence {of['confidence']:.3f}: {of['reason']}"
    kept = {case: folder / f"{case}{ending}" for case in cases if case not in left_out}
    record = {**head, "cases": cases, "left_out": left_out}
    write_json(output / RECORD, record)
    page = output / "pseudolabels.html"
    legend = {**label_names(work.dataset)}
    if request.filter == "confidence":
        legend[work.new_dataset["labels"]["ignore"]] = UNSURE
    write_page(
        page, f"{work.name}: pseudo-labels of {model.trainer}", _facts(model, head, left_out),
        cases, sources.unlabelled, {c: folder / f"{c}{ending}" for c in cases}, legend,
        work.dataset,
    )  # fmt: skip
    dataset = None
    if request.new_dataset is not None:
        if not kept:
            raise ValueError(
                f"No case is sure by {request.min_confidence}, so no dataset is written. See {page}"
            )
        of_kept = {case: of for case, of in cases.items() if case in kept}
        dataset = write_dataset(
            request.new_dataset, work.name, request.plans, work.new_dataset, sources, kept,
            {**record, "cases": of_kept}, work.pattern,
        )  # fmt: skip
    return Result(cases, left_out, dataset, [output / RECORD, page], _following(work, dataset))


def predict_all(
    record: Path, head: dict[str, Any], model: Run, work: Work, folder: Path
) -> dict[str, dict[str, Any]]:
    """Predict what is missing; the record is written after each case.

    A prediction of the same model, settings and image is kept, and so is a file that a person has
    changed since.
    """
    earlier: dict[str, Any] = read_json(record) if record.is_file() else {}
    remembered = earlier.get("cases", {})
    same = {key: earlier.get(key) for key in head} == json.loads(json.dumps(head))
    ending, names = work.dataset["file_ending"], class_names(work.dataset)
    predictor: MirroredPredictor | None = None
    cases: dict[str, dict[str, Any]] = {}
    for case, files in tqdm(work.sources.unlabelled.items(), desc="Predicting", disable=None):
        file, states = folder / f"{case}{ending}", states_of(f.resolve() for f in files)
        of = remembered.get(case)
        if of and file.is_file() and checksum(file) != of["sha256"]:
            cases[case] = {**of, "kind": CORRECTED}
        elif of and file.is_file() and same and of["image"] == json.loads(json.dumps(states)):
            cases[case] = of
        else:
            if predictor is None:
                device = torch.device(work.request.device)
                predictor = MirroredPredictor(model.model_folder, model.fold, device)
            prediction = predictor.predict(files)
            _write(prediction, predictor, work, file)
            cases[case] = {**entry(names, prediction.agreement, file), "image": states}
        write_json(record, {**head, "cases": {**remembered, **cases}})
    return cases


def _write(prediction: Prediction, predictor: MirroredPredictor, work: Work, file: Path) -> None:
    """Filtered, with nnU-Net's writer."""
    segmentation, request = prediction.segmentation, work.request
    if request.filter != "none":
        by_size = request.filter == "largest"
        segmentation = filter_volume(
            segmentation,
            prediction.probabilities,
            largest if by_size else confident(request.min_confidence),
            predictor.classes,
            replacement=0 if by_size else work.new_dataset["labels"]["ignore"],
        )
    writer = predictor.predictor.plans_manager.image_reader_writer_class()
    writer.write_seg(segmentation, str(file), prediction.properties)


def train_on(dataset: str, work: Work) -> Run:
    """Preprocess a round's dataset and train its model; both go on where they were interrupted."""
    request = work.request
    run = Run(
        dataset, work.next_trainer, request.plans, request.configuration, work.new_fold, 0
    )  # fmt: skip
    number = dataset_number(dataset)
    extract_fingerprints([number], num_processes=request.processes, show_progress_bar=False)
    preprocess_dataset(
        [number], request.plans, [request.configuration], [request.processes],
        show_progress_bar=False,
    )  # fmt: skip
    logs = request.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    launch_local([Job(run, request.device)], logs)
    return run


def _facts(model: Run, head: dict[str, Any], left_out: dict[str, str]) -> dict[str, str]:
    out = "; ".join(f"{case} ({reason})" for case, reason in left_out.items())
    return {
        "model": str(model.folder),
        "filter": f"{head['filter']}, at least {head['min_confidence']}",
        "confidence": "mean Dice of mirrored predictions with their mean, over classes",
        **({"left out": out} if out else {}),
    }


def _following(work: Work, dataset: str | None) -> str:
    request = work.request
    if dataset is None:
        return "add --new-dataset ID to make these a dataset of nnU-Net; predictions are kept"
    number = dataset_number(dataset)
    device = "" if request.device == "cuda" else f" -device {request.device}"
    return (
        f"nnUNetv2_extract_fingerprint -d {number} && nnUNetv2_preprocess -d {number} "
        f"-plans_name {request.plans} -c {request.configuration} && nnUNetv2_train {number} "
        f"{request.configuration} {work.new_fold} -tr {work.next_trainer} -p {request.plans}"
        f"{device}"
    )
