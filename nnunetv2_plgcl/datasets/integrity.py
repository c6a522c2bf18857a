"""Is an image file whole? Not every reader says: SimpleITK fills a truncated .nii.gz with zeros."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

CHUNK = 1 << 20  # bytes


def require_whole(file: Path) -> None:
    """Read a gzip-compressed file to its end and compare its checksum; take others as they are.

    Raises:
        ValueError: the file is missing, empty, truncated or no gzip, with its name.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing.")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty.")
    if file.suffix != ".gz":
        return
    try:
        with gzip.open(file) as stream:
            while stream.read(CHUNK):
                pass
    except EOFError:
        raise ValueError(f"{file} is truncated: copy it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is damaged or no gzip file ({error}): copy it again.") from None
