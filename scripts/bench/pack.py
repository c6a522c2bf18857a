"""Data and checkout in one folder, for a machine that cannot reach this one's data."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def pack(data: Path, name: str, packed: Path) -> list[Path]:
    """Write the raw dataset and the committed checkout.

    Args:
        data: in nnU-Net's raw layout with a split.json.
        name: of the archive.
        packed: folder.

    Returns:
        The archive and the folder of the checkout.
    """

    def git(*words: str) -> bytes:
        return subprocess.run(
            ["git", "-C", CHECKOUT, *words], check=True, capture_output=True
        ).stdout

    if git("status", "--porcelain"):
        print("Changes that are not committed are left out.", file=sys.stderr)
    packed.mkdir(parents=True, exist_ok=True)
    archive = packed / f"{name}.tar.xz"
    with tarfile.open(archive, "w:xz") as target:
        for member, content in _files(data):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(git("archive", "HEAD"))) as source:
        source.extractall(packed / "checkout", filter="data")
    return [archive, packed / "checkout"]


def _files(data: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents. NIfTI files without gzip: xz packs them by a quarter better."""
    for file in sorted(data.glob("*/[!.]*")):
        content, name = file.read_bytes(), file.relative_to(data).as_posix()
        if name.endswith(".gz"):
            content, name = gzip.decompress(content), name.removesuffix(".gz")
        yield name, content
    dataset = json.loads((data / "dataset.json").read_text())
    dataset["file_ending"] = dataset["file_ending"].removesuffix(".gz")
    yield "dataset.json", json.dumps(dataset).encode()
    yield "split.json", (data / "split.json").read_bytes()


def unpack(archive: Path, target: Path) -> Path:
    """The data of an archive, unpacked once."""
    if not target.is_dir():
        part = target.with_name(f"{target.name}.part")
        with tarfile.open(archive) as packed:
            packed.extractall(part, filter="data")
        part.rename(target)
    return target
