"""What is in a preprocessed file of nnU-Net. Source: ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np


def read_header(file: Path) -> dict[str, Any]:
    """Shape (C, X, Y, Z) of a preprocessed file, or the "error" on opening it."""
    try:
        array = blosc2.open(urlpath=str(file), mode="r")
    except Exception:  # Blosc2 says no more than that it could not
        return {"error": f"{file} cannot be opened, it is damaged."}
    shape = getattr(array, "shape", ())
    if len(shape) != 4:
        return {"error": f"{file} is no preprocessed case: its shape is {tuple(shape)}."}
    return {"shape": [int(n) for n in shape]}


def read_values(file: Path) -> dict[str, Any]:
    """Whether all values of a preprocessed image are finite, or the "error" on reading them."""
    try:
        array = blosc2.open(urlpath=str(file), mode="r")[:]
    except Exception:
        return {"error": f"{file} cannot be read to its end, it is damaged."}
    return {"finite": bool(np.isfinite(array).all())}
