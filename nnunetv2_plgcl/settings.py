"""Every hyper-parameter of PLGCL, with its unit, its default and where the default comes from.

"Poster" is the authors' CVPR 2023 poster, "authors' code" their public repository (whose numbers
count, though it never ran), "ours" a decision where both are silent.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PLANS_KEY = "plgcl"


def _parameter(
    default: Any,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    open_interval: bool = False,
) -> Any:
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices, "open": open_interval}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class PLGCLConfig:
    """Hyper-parameters of the semi-supervised trainers, validated on construction.

    Set any subset under the key ``"plgcl"`` of a configuration in the plans file; the rest keeps
    the defaults below. The values travel with the model, because nnU-Net copies the plans.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value lies outside its range or set of choices.
    """

    seed: int = _parameter(0, "seeds weights, loaders and sampling, anew each epoch [ours]", 0)
    labelled_fraction: float = _parameter(
        0.5, "share of labelled patches in a batch of the second stage [ours]", 0, 1, None, True
    )
    warmup_fraction: float = _parameter(
        1 / 3, "share of all epochs trained on labelled cases alone [authors' code]", 0, 1
    )
    ema_decay: float = _parameter(
        0.999, "EMA decay of the teacher per iteration, ramped up [authors' code]", 0, 1
    )
    consistency_weight: float = _parameter(
        1.0, "beta, weight of the consistency loss after its ramp-up [ours]", 0
    )
    consistency_rampup_fraction: float = _parameter(
        0.25, "share of the second stage over which beta ramps up [ours]", 0, 1
    )
    consistency_target: str = _parameter(
        "soft",
        "teacher's probabilities, or their arg max, as the target of consistency [poster: silent]",
        choices=("soft", "hard"),
    )
    consistency_loss: str = _parameter(
        "cross_entropy",
        "cross-entropy alone [poster], or with soft Dice as in nnU-Net's supervised loss [ours]",
        choices=("cross_entropy", "dice_cross_entropy"),
    )
    confidence_threshold: float = _parameter(
        0.0, "voxels where the teacher is less sure take no part in consistency [ours]", 0, 1
    )
    cutout_probability: float = _parameter(
        0.5, "share of strong views with rectangles blanked [ours]", 0, 1
    )
    cutmix_probability: float = _parameter(
        0.0, "share of unlabelled patches with a box pasted from another one [ours]", 0, 1
    )
    contrastive_weight: float = _parameter(
        0.1, "gamma, weight of the contrastive loss [ours; authors' code has 0.5]", 0
    )
    contrastive_rampup_fraction: float = _parameter(
        1 / 3, "share of all epochs over which gamma ramps up [ours]", 0, 1
    )
    temperature: float = _parameter(0.2, "tau of InfoNCE [authors' code]", 0, None, None, True)
    anchors: int = _parameter(
        128, "anchors per iteration, spread over images and classes [authors' code]", 1
    )
    memory_length: int = _parameter(
        4096, "embeddings remembered per class and side [authors' code]", 1
    )
    window_fraction: float = _parameter(
        0.25,
        "edge of a window as a share of the training patch's, at least 16 voxels [ours]",
        0,
        1,
        None,
        True,
    )
    guide: str = _parameter(
        "entropy",
        "what draws the windows [poster, second ablation]",
        choices=("entropy", "lowest_entropy", "confidence", "cosine"),
    )
    balanced_sides: bool = _parameter(
        True, "as many positives as negatives of each class, instead of sides by chance [ours]"
    )
    embedding: str = _parameter(
        "feature",
        "pool feature maps inside a window [ours], or encode the crop again [authors' code]",
        choices=("feature", "crop"),
    )
    feature_stages: tuple[int, ...] = _parameter(
        (-2,), "encoder stages that feature embedding pools, 0 the finest, -1 the coarsest [ours]"
    )
    expectation: str = _parameter(
        "sampled",
        "InfoNCE over sampled pairs [poster], or its closed-form bound [authors' code]",
        choices=("sampled", "closed_form"),
    )
    covariance_scale: float = _parameter(
        4.0, "lambda of the closed form at the end of its linear ramp-up [authors' code]", 0
    )
    negatives_per_class: float = _parameter(
        1.0,
        "negatives that the closed form counts for each other class [ours]",
        0,
        None,
        None,
        True,
    )
    deployed_weights: str = _parameter(
        "teacher",
        "weights that are validated and stored as network_weights [ours]",
        choices=("teacher", "student"),
    )

    def __post_init__(self) -> None:
        for parameter in fields(self):
            _validate(parameter.name, getattr(self, parameter.name), parameter)


def _validate(name: str, value: Any, parameter: Any) -> None:
    rule = parameter.metadata
    types: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }
    several = isinstance(parameter.default, tuple)
    kind = "int" if several else parameter.type
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


def config_from_plans(
    configuration: Mapping[str, Any], fixed: Mapping[str, Any] | None = None
) -> PLGCLConfig:
    """Build the configuration of a training from nnU-Net's plans.

    Args:
        configuration: one resolved configuration of the plans (``ConfigurationManager``'s dict);
            its key ``"plgcl"``, where present, maps names of ``PLGCLConfig`` to values.
        fixed: values that the trainer class itself stands for, such as no warm-up in
            ``nnUNetTrainerPLGCL_noWarmup``.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value out of range, or a
            plans value that contradicts the trainer class.
        TypeError: a value of the wrong type.
    """
    given = configuration.get(PLANS_KEY, {})
    if not isinstance(given, Mapping):
        raise TypeError(
            f"'{PLANS_KEY}' in the plans must be a mapping of names to values, got {given!r}."
        )
    known = [parameter.name for parameter in fields(PLGCLConfig)]
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise ValueError(
                f"Unknown key '{key}' under '{PLANS_KEY}' in the plans. "
                f"Did you mean '{nearest[0]}'? Known keys: {', '.join(known)}."
            )
    fixed = dict(fixed or {})
    for key, value in fixed.items():
        if key in given and given[key] != value:
            raise ValueError(
                f"The plans set '{key}' to {given[key]!r}, but this trainer stands for {value!r}. "
                f"Remove '{key}' from '{PLANS_KEY}' in the plans or use another trainer."
            )
    values = {**given, **fixed}
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return PLGCLConfig(**{**values, **lists})
