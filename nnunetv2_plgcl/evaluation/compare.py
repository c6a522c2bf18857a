"""The steps of ``nnUNetv2_plgcl_compare``: train what is missing, refuse what is unlike, evaluate,
write tables, figures and the report. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_plgcl.datasets.files import (
    dataset_name,
    dataset_number,
    nnunet_folder,
    read_plans,
    read_split,
    split_file,
)
from nnunetv2_plgcl.datasets.raw import images_by_case, labelled_images
from nnunetv2_plgcl.datasets.unlabelled import preprocessed_cases, some, unlabelled_folder
from nnunetv2_plgcl.evaluation import comparison as library
from nnunetv2_plgcl.evaluation import launch, tables, tsne
from nnunetv2_plgcl.evaluation.comparison import METRICS, Comparison
from nnunetv2_plgcl.evaluation.evaluate import class_names
from nnunetv2_plgcl.evaluation.figures import box_plot, learning_curves
from nnunetv2_plgcl.evaluation.overlay import overlay_figure, slice_with_most_foreground
from nnunetv2_plgcl.evaluation.postprocessing import postprocess
from nnunetv2_plgcl.evaluation.report import Picture, picture_of, write_report
from nnunetv2_plgcl.evaluation.runs import Run, read_course, require_alike, require_finished


@dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
        dataset: number or name.
        configuration, plans: of nnU-Net.
        folds: of splits_final.json.
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
        trust_split: see ``runs.require_alike``.
        postprocessing: compare what nnU-Net's own postprocessing makes of the predictions.
        processes: worker processes of the evaluation.
    """

    dataset: str
    configuration: str
    folds: Sequence[int]
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


def compare(request: Request) -> tuple[str, list[Path]]:
    """Do what ``nnUNetv2_plgcl_compare`` does.

    Returns:
        The table in Markdown, and the files written.

    Raises:
        ValueError, FileNotFoundError: what cannot be compared, and why.
        RuntimeError: a training, a prediction or an evaluation failed.
    """
    name = dataset_name(request.dataset)
    plans, dataset = read_plans(name, request.plans, request.configuration)
    splits = _read_split(name, request.folds)
    runs = [
        Run(name, trainer, request.plans, request.configuration, fold, seed)
        for fold in request.folds
        for seed in range(request.seeds)
        for trainer in request.trainers
    ]
    if request.test:
        _require_test_references(*request.test, dataset)
    for trainer in request.trainers:
        recursive_find_trainer_class_by_name(trainer)  # its RuntimeError names the trainer
    predictions = _train_and_predict(request, runs, dataset)
    require_finished(runs)
    images_un = _images_un(plans, request.configuration)
    require_alike(runs, splits, images_un, split_file(name), request.trust_split)
    (request.output / "figures").mkdir(parents=True, exist_ok=True)

    of_dataset = nnunet_folder("nnUNet_preprocessed") / name / "gt_segmentations"
    if request.test:
        reference, cases = request.test[1], dict.fromkeys(request.folds)
    else:
        reference = of_dataset
        cases = {fold: splits[fold]["val"] for fold in request.folds}
    if request.postprocessing:
        folder = request.output / "postprocessing"
        predictions = {
            run: postprocess(run, raw, of_dataset, folder / run.name, request.processes)
            for run, raw in predictions.items()
        }
    sizes = {
        fold: (len(splits[fold]["train"]), len(splits[fold].get("unlabelled", [])) + len(images_un))
        for fold in request.folds
    }
    scores = library.scores_of(
        predictions, reference, cases, sizes, dataset, request.voxel, request.processes
    )
    comparison = Comparison(
        trainers=tuple(request.trainers),
        classes=tuple(class_names(dataset)),
        unit="voxels" if request.voxel else "mm",
        scores=scores,
        courses={run: read_course(run) for run in runs},
    )
    results, tests = library.results(comparison), library.tests(comparison)
    written = tables.write_tables(comparison, results, tests, request.output)
    sections = {
        "Cases": [_box_plot(comparison, metric) for metric in METRICS],
        "Learning": [
            picture_of(f"{n} labelled cases", learning_curves(comparison, n))
            for n in comparison.amounts
        ],
        "Segmentations": _overlays(request, comparison, predictions, reference, dataset),
        "Features": _tsne(request, runs, splits),
    }
    for heading, pictures in sections.items():
        for number, picture in enumerate(pictures):
            file = request.output / "figures" / f"{heading.lower()}_{number}.png"
            file.write_bytes(picture.png)
    report = request.output / "report.html"
    table = tables.readable(comparison, results)
    write_report(
        report,
        f"{name}, {request.configuration}: {len(request.trainers)} trainers compared",
        _facts(request, comparison, cases, sizes),
        table,
        tables.readable_tests(tests),
        {heading: pictures for heading, pictures in sections.items() if pictures},
    )
    return tables.to_markdown(table), [report, *written]


def _read_split(name: str, folds: Sequence[int]) -> list[dict[str, list[str]]]:
    file = split_file(name)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}. Write one: nnUNetv2_plgcl_split -d {dataset_number(name)} "
            f"--labelled 0.1"
        )
    splits = read_split(file)
    for fold in folds:
        if not 0 <= fold < len(splits):
            raise ValueError(f"{file} has no fold {fold}, it has {len(splits)}.")
    return splits


def _train_and_predict(
    request: Request, runs: Sequence[Run], dataset: Mapping[str, Any]
) -> dict[Run, Path]:
    """Do what is missing, as far as it was asked for.

    Returns:
        Where the predictions of each run lie.
    """
    if request.run:
        for run in runs:
            if run.seed:  # repetition 0 has the original
                launch.write_plans_copy(
                    run.dataset, run.plans, run.plans_name, run.configuration, {"seed": run.seed}
                )
    else:
        require_finished(runs)
    if not request.test:
        predictions = {run: run.validation for run in runs}
        jobs = [launch.Job(run, request.device) for run in runs if not run.is_finished()]
    else:
        folder = request.output / "predictions"
        predictions = {run: folder / run.name for run in runs}
        images = images_by_case(request.test[0], dataset["file_ending"])
        jobs = [
            launch.Job(run, request.device, str(request.test[0]), str(predictions[run]))
            for run in runs
            if not (run.is_finished() and launch.is_predicted(run, images, predictions[run]))
        ]
    if jobs:
        (request.output / "logs").mkdir(parents=True, exist_ok=True)
    if jobs and request.launcher == "slurm":
        launch.launch_slurm(jobs, request.output / "logs", request.slurm)
    elif jobs:
        launch.require_device(request.device)
        launch.launch_local(jobs, request.output / "logs", request.jobs)
    return predictions


def _images_un(plans: dict, configuration: str) -> list[str]:
    """Unlabelled cases of every fold."""
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    base = nnunet_folder("nnUNet_preprocessed") / plans["dataset_name"]
    return preprocessed_cases(unlabelled_folder(base, identifier))


def _require_test_references(images: Path, labels: Path, dataset: Mapping[str, Any]) -> None:
    """Before hours of training: every test image has a reference, and there is no other."""
    ending = dataset["file_ending"]
    of_images = set(images_by_case(images, ending))
    if not labels.is_dir():
        raise ValueError(f"There is no folder {labels}.")
    of_labels = {file.name.removesuffix(ending) for file in labels.glob(f"[!.]*{ending}")}
    if of_images != of_labels:
        raise ValueError(
            f"{some(sorted(of_images ^ of_labels))} in one of {images} and {labels} only."
        )


def _legend(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Names of the values in a segmentation. With regions a value stands for the voxels of one
    region that are in none of the later ones."""
    names = class_names(dataset)
    order = dataset.get("regions_class_order")
    return dict(zip(order or sorted(dataset["labels"][name] for name in names), names, strict=True))


def _facts(
    request: Request,
    comparison: Comparison,
    cases: Mapping[int, Sequence[str] | None],
    sizes: Mapping[int, tuple[int, int]],
) -> dict[str, str]:
    course = next(iter(comparison.courses.values()))
    number = comparison.scores.groupby("fold")["case"].nunique()
    facts = {"plans": request.plans}
    for fold, (labelled, unlabelled) in sizes.items():
        kind = "test" if cases[fold] is None else "validation"
        facts[f"fold {fold}"] = (
            f"{labelled} labelled, {unlabelled} unlabelled (for semi-supervised trainers), "
            f"{number[fold]} {kind} cases"
        )
    facts["iterations"] = f"{course.iterations}, with {course.batch_size} patches each"
    facts["repetitions"] = str(request.seeds)
    facts["weights"] = "those of the last iteration; never chosen by a score"
    if request.postprocessing:
        facts["postprocessing"] = "nnU-Net's, determined on the validation cases of each training"
    facts["date"] = date.today().isoformat()
    return facts


def _box_plot(comparison: Comparison, metric: str) -> Picture:
    return picture_of(f"{metric} of every case", box_plot(comparison, metric))


def _overlays(
    request: Request,
    comparison: Comparison,
    predictions: Mapping[Run, Path],
    reference: Path,
    dataset: Mapping[str, Any],
) -> list[Picture]:
    """Image, reference and each trainer's first repetition for the best, median and worst case."""
    name = dataset_name(request.dataset)
    ending = dataset["file_ending"]
    if request.test:
        images = images_by_case(request.test[0], ending)
    else:
        images = labelled_images(nnunet_folder("nnUNet_raw") / name, dataset)
    legend = _legend(dataset)
    pictures = []
    for labelled in comparison.amounts:
        of_amount = comparison.scores[comparison.scores["labelled"] == labelled]
        values = comparison.per_case(labelled, "DSC").mean(axis=1)
        for rank, case in library.cases_to_show(comparison, labelled).items():
            fold = int(of_amount[of_amount["case"] == case]["fold"].iloc[0])
            files = [str(file) for file in images[case]]
            reader = determine_reader_writer_from_dataset_json(
                dict(dataset), files[0], verbose=False
            )()
            image, properties = reader.read_images(files)
            truth = _segmentation(reader, reference / f"{case}{ending}")
            volumes = {"reference": np.where(np.isin(truth, list(legend)), truth, 0)}
            for run, folder in predictions.items():
                if run.fold == fold and run.seed == 0:
                    volumes[run.trainer] = _segmentation(reader, folder / f"{case}{ending}")
            z = slice_with_most_foreground(volumes["reference"])
            spacing = tuple(float(length) for length in properties["spacing"][-2:])
            figure = overlay_figure(
                image[0, z], {t: v[z] for t, v in volumes.items()}, legend, (spacing[0], spacing[1])
            )
            title = f"{rank} case, {case}, {labelled} labelled: DSC {100 * values[case]:.1f} %"
            pictures.append(picture_of(f"{title} (mean over trainers)", figure, wide=True))
    return pictures


def _segmentation(reader: Any, file: Path) -> np.ndarray:
    segmentation: np.ndarray = reader.read_seg(str(file))[0][0]
    return segmentation


def _tsne(
    request: Request, runs: Sequence[Run], splits: Sequence[Mapping[str, Sequence[str]]]
) -> list[Picture]:
    """Patch features of the first fold's validation cases; nothing where a network has no encoder
    or the cases too few patches."""
    fold = request.folds[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    file = request.output / "figures" / "tsne.png"
    try:
        features = {
            run.trainer: tsne.features_of_model(
                run.model_folder, fold, splits[fold]["val"], device=device
            )
            for run in runs
            if run.fold == fold and run.seed == 0
        }
        tsne.tsne_figure(features, file)
    except (NotImplementedError, ValueError) as error:
        print(f"No t-SNE: {error}")
        return []
    title = f"Patches of validation cases by class (t-SNE), fold {fold}"
    return [Picture(title, file.read_bytes(), wide=True)]
