"""Checkpoints of models that others may have made. Source: ours."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

_CORES = ("core", "_core")
# beside tensors and plain values nnU-Net's checkpoints hold numbers and arrays of NumPy
_NUMPY: list[Any] = [
    # what pickle makes them with, under its name in NumPy 1 and 2
    *((np.float32(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in _CORES),
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in _CORES),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"),
]


def read_model_file(file: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; code that may hide in a pickle is not run.

    Raises:
        ValueError: it is damaged, holds more than tensors, numbers and words, or lacks what nnU-Net
            predicts with.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what unpickling raises depends on the bytes
        raise ValueError(
            f"{file} is no checkpoint that can be trusted: {_reason(error)}."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} is no checkpoint of nnU-Net: it holds a {type(content).__name__}."
        )
    lost = [key for key in ("network_weights", "trainer_name", "init_args") if key not in content]
    if lost or "configuration" not in content["init_args"]:
        raise ValueError(
            f"{file} is no checkpoint of nnU-Net: it has no "
            f"{', '.join(lost) or 'configuration in its init_args'}."
        )
    return content


def _reason(error: Exception) -> str:
    """In our words: PyTorch's advise to load the file all the same."""
    other = re.search(r"GLOBAL ([\w.]+)", str(error))
    if other is None:
        unclear = isinstance(error, pickle.UnpicklingError)
        return f"it is damaged{', or holds what cannot be read safely' if unclear else ''}"
    return f"beside tensors, numbers and words it holds {other[1]}, which could be any code"


def load_model(
    predictor: nnUNetPredictor, model_folder: Path, fold: int | str, checkpoint: str
) -> None:
    """Hand a model to nnU-Net's predictor, which runs what a pickle holds, once it has been looked
    at.

    Raises:
        ValueError: see ``read_model_file``.
    """
    file = model_folder / f"fold_{fold}" / checkpoint
    if file.is_file():  # else the predictor says what it misses
        read_model_file(file)
    predictor.initialize_from_trained_model_folder(str(model_folder), (fold,), checkpoint)
