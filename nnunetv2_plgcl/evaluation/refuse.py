"""What cannot be compared is refused, before anything is trained as far as it can be known.

Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_plgcl.datasets.check import check_training
from nnunetv2_plgcl.datasets.check.start import find_trainer, try_start
from nnunetv2_plgcl.datasets.description import (
    channel_names,
    label_manager,
    read_dataset,
    values_of,
)
from nnunetv2_plgcl.datasets.files import split_file
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.evaluation.conditions import (
    Conditions,
    expected_conditions,
    read_conditions,
    require_same_conditions,
)
from nnunetv2_plgcl.evaluation.evaluate import require_same_cases, require_segmentation
from nnunetv2_plgcl.evaluation.folds import ALL, Fold, nnunet_split
from nnunetv2_plgcl.evaluation.launch import plans_copy, require_device
from nnunetv2_plgcl.evaluation.plan import Plan
from nnunetv2_plgcl.evaluation.runs import (
    FINAL,
    LABELLED,
    Run,
    read_record,
    require_finished,
    start_of_training,
)
from nnunetv2_plgcl.model_files import read_model_file
from nnunetv2_plgcl.record import CASES, CHANGES
from nnunetv2_plgcl.record import read_record as read_training
from nnunetv2_plgcl.semisupervised.cascade import require_first_stage
from nnunetv2_plgcl.semisupervised.lock import require_free
from nnunetv2_plgcl.semisupervised.state import newest
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised
from nnunetv2_plgcl.workers import describe_failures, one_line, run_all


def refuse(plan: Plan) -> None:
    """Refuse a comparison that would not come to its end, or would not be fair.

    Raises:
        ValueError, FileNotFoundError: what is wrong.
        RuntimeError: no such trainer; a worker process was killed.
    """
    request = plan.request
    _require_evaluable(plan)
    classes = {name: find_trainer(name) for name in request.trainers}
    if not request.run:
        require_finished(plan.runs)
    finished = [run for run in plan.runs if run.is_finished()]
    waiting = [run for run in plan.runs if not run.is_finished()]
    for run in finished:
        read_model_file(run.folder / FINAL)
        _require_same_labels(run, plan.dataset)
        require_split(run, plan.folds[run.fold], request.trust_split)
    conditions = {run: read_conditions(run) for run in finished}
    require_same_conditions(conditions | _expected(plan, waiting))
    if plan.missing():
        if request.launcher == "local":
            require_device(request.device)
        _require_trainable(plan, waiting, classes)
        _require_references(plan)


def require_alike(runs: Sequence[Run], folds: Mapping[int | str, Fold], trust_split: bool) -> None:
    """Refuse runs that were not trained under the same conditions.

    Labelled, unlabelled and validation cases must be those of the split, plans (but for their name
    and our settings) and iterations those of the first run, our settings (but for the seed) those
    of the same trainer's other runs.

    Args:
        runs: finished.
        folds: cases of each.
        trust_split: believe that a trainer which does not note its cases was trained with this
            split, although the file is younger than the training.

    Raises:
        ValueError: what differs, and in which run.
    """
    for run in runs:
        require_split(run, folds[run.fold], trust_split)
    require_same_conditions({run: read_conditions(run) for run in runs})


def require_split(run: Run, fold: Fold, trust_split: bool) -> None:
    """Refuse a finished run whose cases are not those of the fold.

    Raises:
        ValueError: which cases, or that nobody knows; that it did not go on as it began.
    """
    training = read_training(run.folder)
    if training.get(CHANGES):
        raise ValueError(
            f"{run} did not go on as it began: {'; '.join(training[CHANGES])}. Train it anew."
        )
    noted = training.get(CASES, {})
    ending = read_dataset(run.model_folder / "dataset.json")["file_ending"]
    validated = {f.name.removesuffix(ending) for f in run.validation.glob(f"[!.]*{ending}")}
    _require_same("validation", validated, fold.validation, run)
    if noted:
        _require_same("unlabelled", set(noted["unlabelled"]), fold.unlabelled, run)
    labelled = noted.get("labelled", read_record(run).get(LABELLED))
    if labelled is not None:
        _require_same("labelled", set(labelled), fold.labelled, run)
    elif run.fold != ALL:  # there the validated cases are the labelled ones
        _require_split_of_log(run, fold, trust_split)


def _require_split_of_log(run: Run, fold: Fold, trust_split: bool) -> None:
    file = split_file(run.dataset)
    log, number, made_split = start_of_training(run)
    if number != len(fold.labelled):
        raise ValueError(
            f"{run} had {number} labelled cases, {_named(run)} has {len(fold.labelled)}."
        )
    if trust_split or file.stat().st_mtime <= log.timestamp():
        return
    if made_split and json.loads(file.read_text()) == nnunet_split(run.preprocessed):
        return
    raise ValueError(
        f"{file} is younger than the training of {run}, which notes no names: its labelled cases "
        f"may have been others. Train it again, or add --trust-split if the file was merely copied."
    )


def _named(run: Run) -> str:
    return f"fold {run.fold} of {split_file(run.dataset)}"


def _require_same(part: str, of_run: set[str], listed: Sequence[str], run: Run) -> None:
    other = sorted(of_run ^ set(listed))
    if other:
        raise ValueError(
            f"{run} has other {part} cases than {_named(run)}. {some(other)} in one of them only."
        )


def _require_same_labels(run: Run, dataset: Mapping[str, Any]) -> None:
    file = run.model_folder / "dataset.json"
    then, now = (
        {name: values_of(value) for name, value in of["labels"].items()}
        for of in (read_dataset(file), dataset)
    )
    if then != now:
        raise ValueError(
            f'{run} was trained with "labels" {then}, dataset.json now has {now}. Restore them, or '
            f"train it anew. Where names alone were corrected, correct them in {file} too."
        )


def _expected(plan: Plan, waiting: Sequence[Run]) -> dict[Run, Conditions]:
    """Of runs that are to be trained, or trained to their end.

    Raises:
        ValueError, RuntimeError: one would not start, or not go on.
    """
    expected = {}
    for one in {(run.trainer, run.seed): run for run in waiting}.values():  # folds start alike
        seed = {"seed": one.seed} if one.seed else {}
        plans = plans_copy(plan.plans, one.plans_name, one.configuration, seed)
        trainer, refused = try_start(one.trainer, plans, plan.dataset, one.configuration, one.fold)
        if refused:
            raise ValueError(refused[0].text)
        for run in waiting:
            if (run.trainer, run.seed) == (one.trainer, one.seed):
                trainer.fold = run.fold  # which decides where a first stage's predictions lie
                _require_continued(run, trainer, plan.folds[run.fold])
                expected[run] = expected_conditions(run, trainer, plans)
    return expected


def _require_continued(run: Run, trainer: Any, fold: Fold) -> None:
    """What was begun goes on as it began, nobody else is at it, and a first stage was trained."""
    if LABELLED in (record := read_record(run)):
        _require_same("labelled", set(record[LABELLED]), fold.labelled, run)
    require_free(run.folder)
    require_first_stage(trainer, [*fold.labelled, *fold.validation], fold.unlabelled)
    begun = newest(run.folder)
    if begun is not None:
        try:
            read_model_file(begun)
        except ValueError as error:
            raise ValueError(
                f"{error} Move it away: the training goes on from the newest one beside it, or "
                f"begins anew."
            ) from None
        if _is_ours(type(trainer)):
            trainer.require_continued(begun, asdict(fold))


def _require_evaluable(plan: Plan) -> None:
    """The request makes sense, and its output can be written."""
    request = plan.request
    label_manager(plan.dataset)
    if ALL in request.folds and not request.test:
        raise ValueError("Fold all validates the cases it trains on: add --test IMAGES LABELS.")
    if ALL in request.folds and request.postprocessing:
        raise ValueError(
            "Fold all has no validation cases, on which --postprocessing is determined."
        )
    for run in plan.runs:
        if not plan.folds[run.fold].validation:
            raise ValueError(f"{_named(run)} has no validation case.")
    if request.test:
        configuration = PlansManager(plan.plans).get_configuration(request.configuration)
        if configuration.previous_stage_name is not None:
            raise ValueError(
                f"{request.configuration} is the second stage of a cascade, for which --test would "
                f"need the first one's predictions. Predict the cases with nnUNetv2_predict, then "
                f"compare them with --predictions."
            )
        labels = request.test[1]
        if not labels.is_dir():
            raise ValueError(f"There is no folder {labels}.")
        ending = plan.dataset["file_ending"]
        there = {file.name.removesuffix(ending) for file in labels.glob(f"[!.]*{ending}")}
        require_same_cases(plan.images, request.test[0], there, labels)
    (request.output / "figures").mkdir(parents=True, exist_ok=True)


def _require_trainable(plan: Plan, waiting: Sequence[Run], classes: Mapping[str, type]) -> None:
    """What our trainers refuse at their start."""
    ours = {name for name, found in classes.items() if _is_ours(found)}
    for fold in dict.fromkeys(run.fold for run in waiting if run.trainer in ours):
        findings = check_training(
            plan.plans, plan.dataset, plan.request.configuration, fold,
            processes=plan.request.processes,
        )  # fmt: skip
        errors = [f.text for f in findings if f.level == "error" and f.certain]
        if errors:
            raise ValueError(one_line(ValueError(" ".join(errors))))


def _is_ours(trainer: type) -> bool:
    return issubclass(trainer, nnUNetTrainerSemiSupervised)


def _require_references(plan: Plan) -> None:
    """Every case has a legible reference that fits its image, and a test image its channels."""
    ending = plan.dataset["file_ending"]
    cases = sorted({case for of_fold in plan.cases.values() for case in of_fold})
    lost = [case for case in cases if not (plan.references / f"{case}{ending}").is_file()]
    if lost:
        raise FileNotFoundError(f"{some(lost)} without a reference in {plan.references}.")
    reader = determine_reader_writer_from_dataset_json(
        plan.dataset, str(plan.references / f"{cases[0]}{ending}"), verbose=False
    )
    labels = label_manager(plan.dataset)
    arguments = {
        case: (
            str(plan.references / f"{case}{ending}"),
            [str(file) for file in plan.images.get(case, ())],
            reader,
            [int(label) for label in labels.all_labels],
            labels.ignore_label,
            len(channel_names(plan.dataset)),
        )
        for case in cases
    }
    failures = run_all(check_reference, arguments, plan.request.processes, "Checking references")
    if failures:
        raise ValueError(describe_failures(failures, len(cases)))


def check_reference(
    reference_file: str,
    images: Sequence[str],
    reader: Any,
    known_labels: Sequence[int],
    ignore_label: int | None,
    channels: int,
) -> None:
    """Refuse a reference that a prediction could not be compared with.

    Args:
        reference_file: of the case.
        images: its image files; none where they are not at hand.
        reader: nnU-Net's reader class for them.
        known_labels, ignore_label: of dataset.json.
        channels: that an image must have.

    Raises:
        ValueError: unknown labels; a shape other than the image's; other channels.
    """
    reference, _ = reader().read_seg(reference_file)
    require_segmentation(reference, known_labels, ignore_label, reference_file)
    if not images:
        return
    image, _ = reader().read_images(images)
    if image.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"{reference_file} has shape {reference.shape[1:]}, its image {image.shape[1:]}."
        )
    if len(image) != channels:
        raise ValueError(
            f"{Path(images[0]).name} has {len(image)} channels, dataset.json names {channels}."
        )
