"""The check of the small dataset, and ways to spoil that."""

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY
from training import make_trainer, tiny

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


def raw_image(prepared, case: str) -> Path:
    return prepared.base / "nnUNet_raw" / prepared.name / "imagesTr" / f"{case}_0000.nii.gz"


def rewrite(file: Path, change) -> None:
    """Read an image, change array and header, write it back."""
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image).astype(np.float32)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


def run(capsys, *more: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        commands.check(["-d", "901", "-c", TINY, "-f", "0", *more])
    return stopped.value.code, capsys.readouterr().out


def start(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerPLGCL), prepared)
    trainer.on_train_start()
    return Path(trainer.log_file).read_text()


def write_split(prepared, **changes):
    fold = {**prepared.split, **changes}
    (prepared.preprocessed / "splits_final.json").write_text(json.dumps([fold]))


def gt(prepared, case: str) -> Path:
    return prepared.preprocessed / "gt_segmentations" / f"{case}.nii.gz"


def damage(file: Path, how: str) -> None:
    image = blosc2.open(str(file), mode="r")[:]
    whole = file.read_bytes()
    file.unlink()
    if how in ("nan", "channels"):
        image = np.full_like(image, np.nan) if how == "nan" else np.concatenate([image, image])
        blosc2.asarray(image, urlpath=str(file))
    else:
        file.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"\7" * 999}[how])
