"""The steps of ``nnUNetv2_plgcl_compare``: plan, refuse, train, evaluate, report. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from nnunetv2_plgcl.datasets.description import class_names
from nnunetv2_plgcl.evaluation import comparison as library
from nnunetv2_plgcl.evaluation import launch
from nnunetv2_plgcl.evaluation.comparison import METRICS, Comparison
from nnunetv2_plgcl.evaluation.figures import box_plot, learning_curves
from nnunetv2_plgcl.evaluation.pictures import overlays, tsne_of_features
from nnunetv2_plgcl.evaluation.plan import Plan, Request, make_plan
from nnunetv2_plgcl.evaluation.postprocessing import postprocess
from nnunetv2_plgcl.evaluation.publish import Published, publish
from nnunetv2_plgcl.evaluation.refuse import refuse, require_alike
from nnunetv2_plgcl.evaluation.report import picture_of
from nnunetv2_plgcl.evaluation.runs import Run, read_course, require_finished


def compare(request: Request) -> Published:
    """Do what ``nnUNetv2_plgcl_compare`` does.

    Raises:
        ValueError, FileNotFoundError: what cannot be compared, and why.
        RuntimeError: a training, a prediction or an evaluation failed.
    """
    plan = make_plan(request)
    refuse(plan)
    train(plan)
    predictions = postprocessed(plan)
    comparison = evaluate(plan, predictions)
    return report(plan, comparison, predictions)


def train(plan: Plan) -> None:
    """Train and predict what is missing; afterwards all runs are finished and alike.

    Raises:
        ValueError, RuntimeError: it failed, or something was changed in the meantime.
    """
    request, jobs = plan.request, plan.missing()
    for run in plan.runs:
        if run.seed and request.run:  # repetition 0 has the original
            launch.write_plans_copy(
                run.dataset, run.plans, run.plans_name, run.configuration, {"seed": run.seed}
            )
    logs = request.output / "logs"
    if jobs:
        logs.mkdir(parents=True, exist_ok=True)
    if jobs and request.launcher == "slurm":
        launch.launch_slurm(jobs, logs, request.slurm)
    elif jobs:
        launch.launch_local(jobs, logs, request.jobs)
    require_finished(plan.runs)
    require_alike(plan.runs, plan.folds, request.trust_split)


def postprocessed(plan: Plan) -> dict[Run, Path]:
    """Folders of the predictions to compare, after nnU-Net's postprocessing if it is wanted."""
    request = plan.request
    if not request.postprocessing:
        return plan.predictions
    folder = request.output / "postprocessing"
    return {
        run: postprocess(run, raw, plan.own_references, folder / run.name, request.processes)
        for run, raw in plan.predictions.items()
    }


def evaluate(plan: Plan, predictions: Mapping[Run, Path]) -> Comparison:
    """Scores and costs of all runs.

    Raises:
        ValueError, RuntimeError: a prediction or a reference cannot be evaluated.
    """
    request = plan.request
    scores, unit, warnings = library.scores_of(
        predictions, plan.references, plan.cases, plan.folds, plan.dataset,
        request.voxel, request.processes,
    )  # fmt: skip
    return Comparison(
        trainers=tuple(request.trainers),
        classes=tuple(class_names(plan.dataset)),
        unit=unit,
        scores=scores,
        courses={run: read_course(run) for run in plan.runs},
        warnings=tuple(warnings),
    )


def report(plan: Plan, comparison: Comparison, predictions: Mapping[Run, Path]) -> Published:
    """Write tables, figures and the HTML report into the output folder."""
    first_fold = next(iter(plan.folds))
    segmentations, notes = overlays(
        comparison, predictions, plan.images, plan.references, plan.dataset
    )
    runs = [run for run in plan.runs if run.fold == first_fold and run.seed == 0]
    features, why_none = tsne_of_features(
        {comparison.short_name(run.trainer): run.model_folder for run in runs},
        first_fold,
        plan.folds[first_fold].validation,
    )
    sections = {
        "Cases": [picture_of(f"{m} of every case", box_plot(comparison, m)) for m in METRICS],
        "Learning": [
            picture_of(f"{n} labelled cases", learning_curves(comparison, n))
            for n in comparison.amounts
        ],
        "Segmentations": segmentations,
        "Features": features,
    }
    title = (
        f"{plan.name}, {plan.request.configuration}: {len(comparison.trainers)} trainers compared"
    )
    return publish(
        plan.request.output, title, facts(plan, comparison), comparison, sections,
        [*notes, *why_none],
    )  # fmt: skip


def facts(plan: Plan, comparison: Comparison) -> dict[str, str]:
    """What was compared, for the head of the report."""
    request = plan.request
    course = next(iter(comparison.courses.values()))
    kind = "test" if request.test else "validation"
    found = {"plans": request.plans}
    for number, fold in plan.folds.items():
        found[f"fold {number}"] = (
            f"{len(fold.labelled)} labelled, {len(fold.unlabelled)} unlabelled (for "
            f"semi-supervised trainers), {len(plan.cases[number])} {kind} cases"
        )
    found["iterations"] = f"{course.iterations}, with {course.batch_size} patches each"
    found["repetitions"] = str(request.seeds)
    found["weights"] = "those of the last iteration; never chosen by a score"
    if request.postprocessing:
        found["postprocessing"] = "nnU-Net's, determined on the validation cases of each training"
    found["date"] = date.today().isoformat()
    return found
