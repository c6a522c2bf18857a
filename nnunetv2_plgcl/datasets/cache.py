"""What was read from files, remembered until they change. Source: ours."""

from __future__ import annotations

import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_plgcl.datasets.files import replacing, states_of

IN_THIS_PROCESS = 64  # so many cases are read before worker processes have started

Values = dict[str, Any]


def cache_folder(preprocessed: Path) -> Path:
    """Where to remember: beside the preprocessed cases, or beside the results where those may only
    be read, as on clusters.

    Args:
        preprocessed: folder of the dataset.
    """
    from nnunetv2 import paths

    if os.access(preprocessed, os.W_OK) or not paths.nnUNet_results.is_set():
        return preprocessed
    return Path(paths.nnUNet_results) / preprocessed.name


def read_once(
    function: Callable[..., Values],
    arguments: Mapping[str, tuple],
    files: Mapping[str, Iterable[Path]],
    cache: Path,
    processes: int,
    description: str,
    threads: bool = False,
) -> dict[str, Values]:
    """Call a function for each case, unless its files are as they were the last time.

    Args:
        function: of a module; returns what JSON can hold. What has an "error" is not remembered.
        arguments: of each case.
        files: of each case, which decide whether what is remembered still holds.
        cache: JSON file, made or replaced in one step. Where it cannot be written, all is read
            again the next time.
        processes: to read many cases with.
        description: of the progress bar.
        threads: read in threads of this process, where a case takes less than a process to start.
    """
    remembered = _read(cache)
    states = {case: states_of(files[case]) for case in arguments}
    found = _still_true(remembered, states)
    waiting = {case: values for case, values in arguments.items() if case not in found}
    if waiting:
        few = len(waiting) < IN_THIS_PROCESS
        with tqdm(total=len(waiting), desc=description, disable=few) as bar:
            for case, values in _read_all(function, waiting, 1 if few else processes, threads):
                found[case] = values
                bar.update()
        new: dict[str, dict[str, Any]] = {
            case: {"state": states[case], "values": found[case], "checksum": _checksum(found[case])}
            for case in waiting
        }
        _write(
            cache, {**remembered, **{c: v for c, v in new.items() if "error" not in v["values"]}}
        )
    return {case: found[case] for case in arguments}


def recall(files: Mapping[str, Iterable[Path]], cache: Path) -> dict[str, Values]:
    """What ``read_once`` remembers of those cases whose files did not change since."""
    return _still_true(_read(cache), {case: states_of(of) for case, of in files.items()})


def _still_true(remembered: Mapping[str, Any], states: Mapping[str, list]) -> dict[str, Values]:
    return {
        case: remembered[case]["values"]
        for case, state in states.items()
        if case in remembered and remembered[case].get("state") == state
    }


def _read_all(
    function: Callable[..., Values], arguments: Mapping[str, tuple], processes: int, threads: bool
) -> Iterator[tuple[str, Values]]:
    if processes < 2:
        for case, values in arguments.items():
            yield case, function(*values)
        return
    context = multiprocessing.get_context("spawn")
    pool: Executor = (
        ThreadPoolExecutor(processes) if threads else ProcessPoolExecutor(processes, context)
    )
    with pool:
        results = pool.map(function, *zip(*arguments.values(), strict=True), chunksize=16)
        yield from zip(arguments, results, strict=True)


def _read(cache: Path) -> dict[str, Any]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        return {
            case: of for case, of in content.items() if of["checksum"] == _checksum(of["values"])
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return {}


def _checksum(values: Values) -> int:
    """What an edited or damaged entry does not have."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _write(cache: Path, content: Mapping[str, Any]) -> None:
    with suppress(OSError):  # a full or read-only disk is no reason to refuse
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as stream:
            stream.write(json.dumps(content).encode())
