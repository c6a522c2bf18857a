"""The Decathlon's archive, made of real volumes where they are at hand."""

import json
import shutil
import tarfile
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest
from converting import convert, failure
from nnunetv2.dataset_conversion import convert_MSD_dataset as nnunet

from nnunetv2_plgcl.datasets.phantom import write_phantom

TASK = "Task04_Hippocampus"


@pytest.fixture
def download(nnunet_folders) -> Path:
    """Two training cases, a test case, and the files that macOS leaves in archives."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus"
    if not shared.is_dir():
        shared = nnunet_folders / "phantom"
        write_phantom(shared, training=3, test=0)
    folder = nnunet_folders / TASK
    labels = sorted((shared / "labelsTr").glob("*.nii.gz"))[:3]
    for number, label in enumerate(labels):
        name, part = f"hippocampus_00{number}.nii.gz", "Ts" if number == 2 else "Tr"
        image = shared / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")
        sources = {f"images{part}": image, **({"labelsTr": label} if part == "Tr" else {})}
        for subfolder, source in sources.items():
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / subfolder / name)
            (folder / subfolder / f"._{name}").write_bytes(b"Mac OS X")
    training = [
        {k: f"./{k}sTr/hippocampus_00{n}.nii.gz" for k in ("image", "label")} for n in range(2)
    ]
    description = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": training,
        "test": ["./imagesTs/hippocampus_002.nii.gz", "./imagesTs/hippocampus_003.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = folder.glob("*/*")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", ["archive", "folder", "folder around it"])
def test_it_becomes_what_nnunet_makes_of_it(
    nnunet_folders, download, in_this_process, monkeypatch, kind, capsys
):
    source = {"archive": nnunet_folders / f"{TASK}.tar", "folder": download}.get(
        kind, nnunet_folders
    )
    if kind == "archive":
        with tarfile.open(source, "w") as archive:
            archive.add(download, TASK)
    convert("hippocampus", source, "-d", 4)
    assert "2 training, 1 test cases found" in (out := capsys.readouterr().out)
    assert "Missing of the official release: hippocampus_003." in out
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(nnunet, "multiprocessing", threads)
    nnunet.convert_msd_dataset(str(download), overwrite_target_id=5)
    ours, theirs = (nnunet_folders / "raw" / f"Dataset00{n}_Hippocampus" for n in (4, 5))
    assert content(ours) == content(theirs) and len(content(ours)) == 5
    one, other = (json.loads((folder / "dataset.json").read_text()) for folder in (ours, theirs))
    assert one["channel_names"] == other["channel_names"]
    assert one["labels"] == {name.lower(): value for name, value in other["labels"].items()}
    assert one["numTraining"] == 2 and one["file_ending"] == ".nii.gz"


def test_what_is_no_download_of_it_is_refused(nnunet_folders, download, in_this_process):
    assert "The paper has no split of hippocampus" in failure(
        "hippocampus", download, "-d", 4, "--protocol", "paper"
    )
    (nnunet_folders / "cut.tar").write_bytes(b"no archive")
    assert "cut.tar is damaged or no tar archive" in failure(
        "hippocampus", nnunet_folders / "cut.tar", "-d", 4
    )
    label = download / "labelsTr" / "hippocampus_001.nii.gz"
    label.unlink()
    assert f"{label} is missing." in failure("hippocampus", download, "-d", 4)
    (download / "dataset.json").write_text('{"training": 2}')
    label.touch()
    assert "it lists no training or test" in failure("hippocampus", download, "-d", 4)
    (download / "dataset.json").unlink()
    assert "imagesTr or dataset.json is not there" in failure("hippocampus", download, "-d", 4)
    assert not list((nnunet_folders / "raw").iterdir())
