"""What a training was given: noted in its checkpoints, so that ``--c`` goes on with the same
training, and in a file beside them, for comparisons. Source: ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_plgcl.datasets.files import read_object, write_json
from nnunetv2_plgcl.datasets.names import some
from nnunetv2_plgcl.settings import PLANS_KEY

RECORD_KEY = "plgcl_record"  # in a checkpoint
FILE = "plgcl_training.json"
ALLOW_CHANGED = "PLGCL_ALLOW_CHANGED"  # environment variable, 1 to go on all the same
CASES = "cases"
CHANGES = "changes"
OWN_NAMES = ("plans_name", "continue_training")  # keys of plans that may differ


def conditions(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What a training takes from its plans: all but their name and the settings of our trainers.

    Args:
        plans: content of a plans file.
        configuration: whose own keys lie beside the general ones.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = dict(PlansManager(dict(plans)).get_configuration(configuration).configuration)
    resolved.pop(PLANS_KEY, None)
    general = {k: v for k, v in plans.items() if k not in (*OWN_NAMES, "configurations")}
    return {**general, **resolved}


def as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as a JSON file gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def differences(noted: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, where both records have it.

    Args:
        noted, now: under ``"cases"`` lists of cases by part; else values by name, nested or not.
    """
    cases = noted.get(CASES, {}), now.get(CASES, {})
    return [
        *_of_cases(*cases),
        *_of_values(
            {name: value for name, value in noted.items() if name != CASES},
            {name: value for name, value in now.items() if name != CASES},
        ),
    ]


def _of_cases(noted: Mapping[str, list], now: Mapping[str, list]) -> Iterator[str]:
    for part in [part for part in noted if part in now]:
        before, after = set(noted[part]), set(now[part])
        if before - after:
            yield f"{some(sorted(before - after))} {part} then, not now"
        if after - before:
            yield f"{some(sorted(after - before))} {part} now, not then"


def _of_values(noted: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    for name in noted:
        if name not in now or noted[name] == now[name]:
            continue
        before, after = noted[name], now[name]
        if isinstance(before, Mapping) and isinstance(after, Mapping) and name != "labels":
            yield from _of_values(before, after, f"{inside}{name}.")
        else:
            yield f"{inside}{name} was {before!r}, is {after!r}"


def require_same(noted: Mapping[str, Any], now: Mapping[str, Any], file: str | Path) -> list[str]:
    """Refuse to go on with another training than the one that wrote the checkpoint.

    Args:
        noted: in the checkpoint.
        now: of this training.
        file: the checkpoint, to be named.

    Returns:
        What differs, where the environment variable ``PLGCL_ALLOW_CHANGED`` is 1.

    Raises:
        ValueError: what differs.
    """
    different = differences(noted, now)
    if different and os.environ.get(ALLOW_CHANGED) != "1":
        raise ValueError(
            f"{file} was written by another training: {'; '.join(different)}. Restore what was "
            f"changed, or move the results away to begin anew. {ALLOW_CHANGED}=1 goes on all the "
            f"same; the change is noted, and comparisons refuse the result."
        )
    return different


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Note it beside the checkpoints."""
    write_json(folder / FILE, record)


def read_record(folder: Path) -> dict[str, Any]:
    """What ``write_record`` noted; empty for a trainer that notes nothing.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    noted = read_object(file)
    for key, kind in ((CASES, dict), (CHANGES, list), ("settings", dict)):
        if not isinstance(noted.get(key, kind()), kind):
            raise ValueError(f'"{key}" in {file} is damaged. Train anew, or restore the file.')
    return noted
