"""Predictions of one round in their folder: made where they are missing, kept where a person has
corrected them. Source: ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_plgcl.datasets.description import channel_names, class_names, label_manager
from nnunetv2_plgcl.datasets.files import states_of, write_json
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.datasets.raw import companions
from nnunetv2_plgcl.evaluation.refuse import check_reference
from nnunetv2_plgcl.evaluation.runs import Run
from nnunetv2_plgcl.pseudolabels.predict import MirroredPredictor
from nnunetv2_plgcl.pseudolabels.record import CORRECTED, RECORD, checksum, entry, read_record
from nnunetv2_plgcl.pseudolabels.request import Work
from nnunetv2_plgcl.semisupervised.components import confident, filter_volume, largest
from nnunetv2_plgcl.workers import naming

INCOMPLETE = ".incomplete"  # folder for predictions in the making


@dataclass(frozen=True)
class Correction:
    """A label that a person has corrected: its entry in the record, and its file."""

    entry: dict[str, Any]
    file: Path


def predict_all(
    output: Path,
    head: dict[str, Any],
    model: Run,
    work: Work,
    corrections: Mapping[str, Correction],
) -> dict[str, dict[str, Any]]:
    """Predict what is missing; the record is written before each file.

    A prediction of the same model, settings and image is kept, and so is a file that a person has
    changed since.

    Args:
        output: folder of the round.
        head: of its record.
        model: trained.
        work: of the first round.
        corrections: of the round before, by case; they stay.

    Returns:
        What the record says of each case.

    Raises:
        ValueError: the folder holds predictions of another model, or files that no record knows; a
            corrected label that does not fit its image or dataset.json.
    """
    folder, record = output / "predictions", output / RECORD
    incomplete = folder / INCOMPLETE
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    ending, names = work.dataset["file_ending"], class_names(work.dataset)
    remembered, same = _remembered(record, head, folder, work)
    predictor: MirroredPredictor | None = None
    cases: dict[str, dict[str, Any]] = {}
    for case, files in tqdm(work.sources.unlabelled.items(), desc="Predicting", disable=None):
        file = folder / f"{case}{ending}"
        states = json.loads(json.dumps(states_of(f.resolve() for f in files)))
        of = remembered.get(case) if file.is_file() else None
        now = checksum(file) if of is not None else ""
        if of is None and case in corrections:
            _copy(corrections[case].file, incomplete, ending, case)
            cases[case] = corrections[case].entry
        elif of is not None and (of["kind"] == CORRECTED or now != of["sha256"]):
            if now != of["sha256"]:
                require_label(file, files, work)
            cases[case] = {**of, "kind": CORRECTED, "sha256": now}
        elif of is not None and same and of.get("image") == states:
            cases[case] = of
        else:
            if predictor is None:
                device = torch.device(work.request.device)
                predictor = MirroredPredictor(model.model_folder, model.fold, device)
            made = incomplete / file.name
            agreement = _predict(files, predictor, work, made)
            cases[case] = {**entry(names, agreement, made), "image": states}
            file.unlink(missing_ok=True)  # else, after a kill, it would be taken for corrected
        write_json(record, {**head, "cases": {**remembered, **cases}})
        for done in incomplete.iterdir():
            os.replace(done, folder / done.name)
    incomplete.rmdir()
    return cases


def corrections_in(
    cases: Mapping[str, dict[str, Any]], output: Path, file_ending: str
) -> dict[str, Correction]:
    """Those of a round, by case."""
    return {
        case: Correction(of, output / "predictions" / f"{case}{file_ending}")
        for case, of in cases.items()
        if of["kind"] == CORRECTED
    }


def _remembered(
    record: Path, head: dict[str, Any], folder: Path, work: Work
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Cases of an earlier call, and whether it was of the same model and settings."""
    earlier = read_record(record) if record.is_file() else {}
    if earlier.get("model", head["model"]) != head["model"]:
        raise ValueError(
            f"{record.parent} holds pseudo-labels of {earlier['model']}. Name another folder with "
            f"-o, or move that one away."
        )
    cases: dict[str, dict[str, Any]] = earlier.get("cases", {})
    ending = work.dataset["file_ending"]
    strange = [
        case
        for case in work.sources.unlabelled
        if case not in cases and (folder / f"{case}{ending}").is_file()
    ]
    if strange:
        raise ValueError(
            f"{some(strange)}: in {folder}, but not in {record}, so nobody knows whether a person "
            f"has corrected it. Bring that file back, or move the predictions away."
        )
    return cases, {key: earlier.get(key) for key in head} == json.loads(json.dumps(head))


def require_label(file: Path, images: Sequence[Path], work: Work) -> None:
    """Refuse a corrected label that no training could use.

    Raises:
        ValueError: it cannot be read; another shape than the image's; unknown labels.
    """
    labels = label_manager(work.new_dataset)
    with naming(file):
        check_reference(
            str(file),
            [str(image) for image in images],
            PlansManager(work.plans).image_reader_writer_class,
            [int(label) for label in labels.all_labels],
            labels.ignore_label,
            len(channel_names(work.dataset)),
        )


def _copy(label: Path, folder: Path, ending: str, case: str) -> None:
    for file in (label, *companions(label.parent, ending, [case]).get(case, [])):
        shutil.copyfile(file, folder / file.name)


def _predict(
    files: Sequence[Path], predictor: MirroredPredictor, work: Work, target: Path
) -> list[float]:
    """Filtered, with nnU-Net's writer; returns the agreement of each class."""
    request = work.request
    with naming(files[0]):
        prediction = predictor.predict(files)
    segmentation = prediction.segmentation
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
    writer.write_seg(segmentation, str(target), prediction.properties)
    return prediction.agreement
