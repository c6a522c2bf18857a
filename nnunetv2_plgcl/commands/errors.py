"""How a command ends that cannot do what it was asked. Source: ours."""

from __future__ import annotations

import io
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_plgcl.datasets.files import is_text

INTERRUPTED = 130  # what a shell reports after Ctrl-C


@contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    """What the library refuses ends the command with its message on stderr and exit status 1; any
    other exception with one line that says where its traceback was written; Ctrl-C without words.

    Args:
        command: name, at the start of the line.
    """
    for stream in (sys.stdout, sys.stderr):  # a name of other bytes is no reason to end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():  # of PyTorch about itself, which no user can heed
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
            _require_text(sys.argv)
            yield
    except OSError as error:
        sys.exit(f"{command}: {_of_the_system(error)}")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{command}: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(
            f"{command}: this should not have happened, please report it ({_said(error)}). "
            f"The traceback is in {_write_traceback(command)}"
        )


def _require_text(words: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8, on which nnU-Net's readers crash."""
    for word in words:
        if not is_text(word):
            raise ValueError(f"{word!r} is not in UTF-8. Rename the file or folder.")


def _of_the_system(error: OSError) -> str:
    """Python says "[Errno 2] No such file or directory: 'x'"; what we raise ourselves is a
    sentence."""
    if error.filename is None:
        return str(error)
    words = {
        FileNotFoundError: "There is no {}.",
        NotADirectoryError: "{} lies in what is a file, not a folder.",
        IsADirectoryError: "{} is a folder, where a file belongs.",
        FileExistsError: "{} is there already, and is no folder.",
        PermissionError: "{} may not be read or written: change its permissions.",
    }
    said = words.get(type(error), f"{{}}: {error.strerror}.")
    return said.format(error.filename)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write_traceback(command: str) -> Path:
    """In a new file of the folder for temporary files, of the exception in flight."""
    with tempfile.NamedTemporaryFile(
        "w",
        encoding="utf-8",
        errors="backslashreplace",
        prefix=f"{command}_",
        suffix=".txt",
        delete=False,
    ) as file:
        file.write(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return Path(file.name)
