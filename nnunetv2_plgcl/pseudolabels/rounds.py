"""The steps of ``nnUNetv2_plgcl_pseudolabel``: predict, score, filter, write; again for each round.

Source: ours.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess as preprocess_dataset

from nnunetv2_plgcl.datasets.files import dataset_number, states_of, write_json
from nnunetv2_plgcl.evaluation.launch import Job, launch_local
from nnunetv2_plgcl.evaluation.pictures import label_names
from nnunetv2_plgcl.evaluation.runs import FINAL, Run
from nnunetv2_plgcl.pseudolabels.dataset import write_dataset
from nnunetv2_plgcl.pseudolabels.page import write_page
from nnunetv2_plgcl.pseudolabels.record import CORRECTED, PSEUDO, RECORD
from nnunetv2_plgcl.pseudolabels.request import Request, Work, name_of_model
from nnunetv2_plgcl.pseudolabels.store import Correction, corrections_in, predict_all

UNSURE = "unsure"  # name of the ignore label in pictures


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


def pseudolabel(request: Request) -> list[Result]:
    """Do what ``nnUNetv2_plgcl_pseudolabel`` does.

    Returns:
        The result of each round.

    Raises:
        ValueError, FileNotFoundError: what is missing or contradicts itself.
        RuntimeError: a prediction or a training failed.
        NotImplementedError: second stage of a cascade.
    """
    work = Work(request)
    work.refuse()
    results = [label_round(request, work, work.model, 1, {})]
    for number in range(2, request.rounds + 1):
        before = results[-1]
        assert request.new_dataset is not None and before.dataset is not None  # -> refuse
        model = train_on(before.dataset, work)
        this = replace(request, new_dataset=request.new_dataset + number - 1)
        corrections = corrections_in(
            before.cases, before.files[0].parent, work.dataset["file_ending"]
        )
        results.append(label_round(this, work, model, number, corrections))
    return results


def label_round(
    request: Request, work: Work, model: Run, number: int, corrections: Mapping[str, Correction]
) -> Result:
    """Predict with one model, and write what it gives.

    Args:
        request: with the number of this round's dataset.
        work: of the first round.
        model: trained.
        number: of the round, from 1.
        corrections: of the round before.
    """
    output = request.output if number == 1 else request.output / f"round_{number}"
    folder = output / "predictions"
    sources, ending = work.sources, work.dataset["file_ending"]
    head = {
        "model": name_of_model(model), "states": states_of([model.folder / FINAL]),
        "round": number, **work.settings,
    }  # fmt: skip
    cases = predict_all(output, head, model, work, corrections)
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
    facts = _facts(head, cases, left_out)
    write_page(
        page, f"{work.name}: pseudo-labels of {model.trainer}", facts,
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
            request.new_dataset, work.name, request.plans, request.configuration,
            work.new_dataset, sources, kept, {**record, "cases": of_kept}, work.pattern,
        )  # fmt: skip
    return Result(cases, left_out, dataset, [output / RECORD, page], _following(work, dataset))


def train_on(dataset: str, work: Work) -> Run:
    """Preprocess a round's dataset and train its model; an interrupted training goes on."""
    request = work.request
    run = Run(
        dataset, work.next_trainer, request.plans, request.configuration, work.new_fold, 0
    )  # fmt: skip
    if run.is_finished():
        return run
    logs = request.output / "logs"
    print(f"Training {run.trainer} on {dataset}, its log in {logs}", flush=True)
    number = dataset_number(dataset)
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints its plans
        extract_fingerprints([number], num_processes=request.processes, show_progress_bar=False)
        preprocess_dataset(
            [number], request.plans, [request.configuration], [request.processes],
            show_progress_bar=False,
        )  # fmt: skip
    logs.mkdir(parents=True, exist_ok=True)
    launch_local([Job(run, request.device)], logs)
    return run


def _facts(
    head: dict[str, Any], cases: dict[str, dict[str, Any]], left_out: dict[str, str]
) -> dict[str, str]:
    corrected = ", ".join(case for case, of in cases.items() if of["kind"] == CORRECTED)
    out = "; ".join(f"{case} ({reason})" for case, reason in left_out.items())
    return {
        "model": head["model"],
        "filter": f"{head['filter']}, at least {head['min_confidence']}",
        "confidence": "mean Dice of mirrored predictions with their mean, over classes",
        **({"corrected by a person": corrected} if corrected else {}),
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
