"""Under what runs are compared: plans, iterations, and the settings of a trainer of ours.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nnunetv2_plgcl.evaluation.runs import LENGTH, Run, compared_plans, read_length
from nnunetv2_plgcl.record import as_json, differences, read_record
from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised


@dataclass(frozen=True)
class Conditions:
    """What runs are compared under.

    Attributes:
        plans: see ``compared_plans``.
        length: epochs and iterations.
        settings: of our trainers, without the seed; none of others.
    """

    plans: Mapping[str, Any]
    length: Mapping[str, int]
    settings: Mapping[str, Any]


def read_conditions(run: Run) -> Conditions:
    """Of a finished run.

    Raises:
        ValueError, FileNotFoundError: a file of it is damaged or missing.
    """
    settings = read_record(run.folder).get("settings", {})
    return Conditions(compared_plans(run), read_length(run), _without_seed(settings))


def expected_conditions(run: Run, trainer: Any, plans: dict[str, Any]) -> Conditions:
    """Of a run that is to be trained, by a trainer with these plans."""
    ours = isinstance(trainer, nnUNetTrainerSemiSupervised)
    return Conditions(
        compared_plans(run, plans),
        {name: int(getattr(trainer, name)) for name in LENGTH},
        _without_seed(as_json(asdict(trainer.config))) if ours else {},
    )


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "seed"}


def require_same_conditions(conditions: Mapping[Run, Conditions]) -> None:
    """Refuse runs, trained or to be trained, that were not given the same.

    Raises:
        ValueError: what differs, and between which runs.
    """
    first = next(iter(conditions))
    first_of: dict[str, Run] = {}
    for run, its in conditions.items():
        plans, length = conditions[first].plans, conditions[first].length
        different = sorted(k for k in {*plans, *its.plans} if plans.get(k) != its.plans.get(k))
        if different:
            raise ValueError(
                f"{run} and {first} have different plans: {', '.join(different)}. Trained with "
                f"earlier plans? Then move {run.folder} or {first.folder} away and train again."
            )
        if its.length != length:
            raise ValueError(
                f"{run} is trained for {_in_words(its.length)}, {first} for {_in_words(length)}."
            )
        same = first_of.setdefault(run.trainer, run)
        changed = differences({"settings": conditions[same].settings}, {"settings": its.settings})
        if changed:
            raise ValueError(
                f"{run} has other settings than {same}: {'; '.join(changed)}. Move one of "
                f"{run.folder} and {same.folder} away and train again."
            )


def _in_words(length: Mapping[str, int]) -> str:
    return " x ".join(f"{value} {name.removeprefix('num_')}" for name, value in length.items())
