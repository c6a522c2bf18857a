"""Settings of the trainers: declared beside each method, read from nnU-Net's plans, validated.

Each setting names its unit, default and source: "poster" is the authors' CVPR 2023 poster,
"authors' code" the public repository of a method's authors (whose numbers count, whether or not it
runs), "paper" the paper named by the method's trainer, "ours" a decision where these are silent.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

PLANS_KEY = "plgcl"


def setting(
    default: Any,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[str, ...] | None = None,
    open_interval: bool = False,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its type is the setting's; a tuple stands for a list of whole numbers.
        doc: one line with the source in brackets.
        low, high: bounds of a number, inclusive unless ``open_interval``.
        choices: of a word.
    """
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices, "open": open_interval}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What every trainer of this package can be told in the plans, validated on construction.

    Set any subset under the key ``"plgcl"`` of a configuration in the plans file; the rest keeps
    its default. The values travel with the model, because nnU-Net copies the plans.

    Attributes:
        published: values of the public code of the method, which ``"preset": "published"`` takes
            in place of the defaults.
        earlier: what a checkpoint was trained with that notes no value of a setting, as it is from
            before the setting, or from before settings were noted.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value lies outside its range or set of choices.
    """

    published: ClassVar[Mapping[str, Any]] = {}
    earlier: ClassVar[Mapping[str, Any]] = {}

    seed: int = setting(0, "seeds weights, loaders and sampling, anew each epoch [ours]", 0)
    preset: str = setting(
        "ours",
        "defaults of this table, or the numbers of the method's public code where it has any",
        choices=("ours", "published"),
    )

    def __post_init__(self) -> None:
        for parameter in fields(self):
            _validate(parameter.name, getattr(self, parameter.name), parameter)


AnySettings = TypeVar("AnySettings", bound=Settings)


def _validate(name: str, value: Any, parameter: Any) -> None:
    rule = parameter.metadata
    types: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }
    several = isinstance(parameter.default, tuple)
    kind = "int" if several else type(parameter.default).__name__
    items = value if several and isinstance(value, tuple) else (value,)
    fits = isinstance(value, tuple) == several
    if not fits or any(
        not isinstance(x, types[kind]) or isinstance(x, bool) != (kind == "bool") for x in items
    ):
        raise TypeError(
            f"'{name}' must be of type {f'list of {kind}' if several else kind}, got {value!r} "
            f"({type(value).__name__}). It stands for: {rule['doc']}."
        )
    if rule["choices"] is not None and value not in rule["choices"]:
        raise ValueError(f"'{name}' must be one of {', '.join(rule['choices'])}, got {value!r}.")
    low, high = rule["low"], rule["high"]
    below = low is not None and (value < low or (rule["open"] and value == low))
    above = high is not None and (value > high or (rule["open"] and value == high))
    if below or above or value != value:
        left, right = ("(", ")") if rule["open"] else ("[", "]")
        high_text = "inf" if high is None else high
        raise ValueError(f"'{name}' must lie in {left}{low}, {high_text}{right}, got {value!r}.")


def names_of(settings_class: type[Settings]) -> list[str]:
    """Names of the settings that a class has."""
    return [parameter.name for parameter in fields(settings_class)]


def read_settings(
    settings_class: type[AnySettings],
    configuration: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
    known_elsewhere: Callable[[], Collection[str]] = tuple,
) -> AnySettings:
    """Build the settings of a training from nnU-Net's plans.

    Args:
        settings_class: of the trainer.
        configuration: one resolved configuration of the plans (``ConfigurationManager``'s dict);
            its key ``"plgcl"``, where present, maps names of settings to values.
        fixed: values that the trainer class itself stands for, such as no warm-up in
            ``nnUNetTrainerPLGCL_noWarmup``.
        known_elsewhere: gives the settings of other trainers. Trainers are compared under the same
            plans, so these may stand there too and are left aside.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value out of range, or a
            plans value that contradicts the trainer class.
        TypeError: a value of the wrong type.
    """
    given = _given(configuration)
    known = names_of(settings_class)
    unknown = [key for key in given if key not in known]
    if unknown:
        elsewhere = known_elsewhere()
        for key in unknown:
            if key not in elsewhere:
                everywhere = [*known, *elsewhere]
                nearest = difflib.get_close_matches(str(key), everywhere, n=1, cutoff=0)
                raise ValueError(
                    f"Unknown key '{key}' under '{PLANS_KEY}' in the plans. "
                    f"Did you mean '{nearest[0]}'? Keys of this trainer: {', '.join(known)}."
                )
    given = {key: value for key, value in given.items() if key in known}
    fixed = dict(fixed or {})
    for key, value in fixed.items():
        if key in given and given[key] != value:
            raise ValueError(
                f"The plans set '{key}' to {given[key]!r}, but this trainer stands for {value!r}. "
                f"Remove '{key}' from '{PLANS_KEY}' in the plans or use another trainer."
            )
    published = settings_class.published if given.get("preset") == "published" else {}
    values = {**published, **given, **fixed}
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return settings_class(**{**values, **lists})


def left_aside(settings_class: type[Settings], configuration: Mapping[str, Any]) -> list[str]:
    """Keys of the plans that belong to other trainers than the one with these settings."""
    return [key for key in _given(configuration) if key not in names_of(settings_class)]


def _given(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    given = configuration.get(PLANS_KEY, {})
    if not isinstance(given, Mapping):
        raise TypeError(
            f"'{PLANS_KEY}' in the plans must be a mapping of names to values, got {given!r}."
        )
    return given
