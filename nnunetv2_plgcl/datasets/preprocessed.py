"""What is in a preprocessed file of nnU-Net. Source: ours."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunetv2_plgcl.datasets.names import first

FORMATS = ("b2nd", "npz", "npy", "pkl")  # of nnU-Net's preprocessed files


def require_no_other_files(folder: Path) -> None:
    """
    Args:
        folder: of a configuration's preprocessed cases; it need not exist.

    Raises:
        ValueError: it holds files that are none of nnU-Net's, such as macOS's ``.DS_Store``: from
            the endings in there nnU-Net (2.8.1, ``infer_dataset_class``) tells the format.
    """
    if not folder.is_dir():
        return
    others = [
        entry.name
        for entry in os.scandir(folder)
        if entry.is_file() and entry.name.rpartition(".")[2] not in FORMATS
    ]
    if others:
        raise ValueError(
            f"{folder} holds files that are no preprocessed cases, and nnU-Net would not know the "
            f"format of those: {first(sorted(others))}. Move them away or remove them."
        )


def read_header(file: Path) -> dict[str, Any]:
    """Shape (C, X, Y, Z) of a preprocessed file, or the "error" on opening it."""
    try:
        array = blosc2.open(urlpath=str(file), mode="r")
    except Exception:  # Blosc2 says no more than that it could not
        return {"error": f"{file} cannot be opened, it is damaged."}
    shape = getattr(array, "shape", ())
    if len(shape) != 4:
        return {"error": f"{file} is no preprocessed case: its shape is {tuple(shape)}."}
    if np.dtype(array.dtype).kind not in "fiub":
        return {"error": f"{file} is no preprocessed case: it holds {array.dtype}, no numbers."}
    return {"shape": [int(n) for n in shape]}


def read_values(file: Path) -> dict[str, Any]:
    """Whether all values of a preprocessed file are finite, or the "error" on reading them."""
    try:
        array = blosc2.open(urlpath=str(file), mode="r")[:]
    except Exception:
        return {"error": f"{file} cannot be read to its end, it is damaged."}
    return {"finite": bool(np.isfinite(array).all())}


def read_properties(file: Path) -> dict[str, Any]:
    """Under "seen" the label values that nnU-Net found in a case, noted in its ``.pkl``; or the
    "error" on reading it."""
    try:
        with open(file, "rb") as stream:
            locations = pickle.load(stream)["class_locations"]
        keys = [
            key if isinstance(key, tuple) else (key,) for key in locations if len(locations[key])
        ]
        return {"seen": sorted({int(value) for key in keys if -1 not in key for value in key})}
    except FileNotFoundError:
        return {"error": f"{file} is missing."}
    except Exception:  # what unpickling raises depends on the bytes
        return {"error": f"{file} cannot be read, it is damaged."}
