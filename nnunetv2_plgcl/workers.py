"""Work in other processes: many cases at once, or one command with a log file."""

from __future__ import annotations

import io
import multiprocessing
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOG_TAIL = 20  # lines


def run_all(
    function: Callable[..., object],
    arguments: Mapping[str, tuple[Any, ...]],
    processes: int,
    description: str,
    show_progress: bool = True,
    results: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Call the function for each case, with a progress bar.

    Args:
        function: of a module, so that processes can import it.
        arguments: of each case.
        processes: to run in.
        description: of the bar.
        show_progress: whether to show it.
        results: gets what the function returns for each case.

    Returns:
        Cases that failed, each with its error in one line.

    Raises:
        RuntimeError: a worker process was killed.
    """
    # spawned, as nnU-Net does: a forked process inherits locks that nobody opens
    context = multiprocessing.get_context("spawn")
    failures = {}
    bar = tqdm(total=len(arguments), desc=description, disable=not show_progress)
    number = min(processes, max(1, len(arguments)))
    with bar, ProcessPoolExecutor(number, context, initializer=leave_interruption) as pool:
        futures: dict[Future, str] = {
            pool.submit(function, *values): case for case, values in arguments.items()
        }
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise RuntimeError(
                        "A worker process was killed, perhaps because the memory ran out: use "
                        "fewer with -np. What is done is kept; run again to go on."
                    ) from None
                if error is not None:
                    failures[futures[future]] = one_line(error)
                elif results is not None:
                    results[futures[future]] = future.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    return failures


def leave_interruption() -> None:
    """In a worker process: Ctrl-C is for the process that started it, which then ends both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    if isinstance(error, KeyError):  # says no more than the key
        return f"{error} is missing"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Inside, an error becomes a ValueError of one line that names the file.

    nnU-Net's readers print what is wrong and raise an error without words. What they print is kept
    from the console and becomes the words of such an error.
    """
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    except Exception as error:
        if str(file) in str(error):
            raise ValueError(one_line(error)) from error
        said = one_line(error) if str(error) else " ".join(printed.getvalue().split())
        raise ValueError(f"{file}: {said or type(error).__name__}") from error


def describe_failures(failures: Mapping[str, str], total: int, shown: int = 3) -> str:
    """The first failures by name, the others by number."""
    more = f" And {len(failures) - shown} more." if len(failures) > shown else ""
    first = " ".join(f"{case}: {error}" for case, error in sorted(failures.items())[:shown])
    return f"{len(failures)} of {total} cases failed. {first}{more}"


def mend_and_run_again(failures: Mapping[str, str], total: int) -> str:
    """``describe_failures`` where the other cases are done."""
    return f"{describe_failures(failures, total)} Mend that and run again: what is done is kept."


def run_logged(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a command, its output going to a file.

    Args:
        command: program and arguments.
        environment: all of its environment variables.
        log: file for stdout and stderr.
        on_line: called with every line of them as it comes.

    Raises:
        RuntimeError: its exit status is not 0; with the log's end.
    """
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace",
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None  # because of PIPE
        for line in process.stdout:
            file.write(line)
            file.flush()
            on_line(line)
    if process.returncode:
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-LOG_TAIL:])
        raise RuntimeError(
            f"{shlex.join(command)}\nended with status {process.returncode}. "
            f"The end of {log}:\n\n{tail}"
        )
