"""The whole way on a generated phantom, with nnU-Net's own commands. Source: ours."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_plgcl.datasets.phantom import CLASSES, SPACING, write_phantom
from nnunetv2_plgcl.evaluation.overlay import overlay_figure, slice_with_most_foreground
from nnunetv2_plgcl.workers import run_logged

DATASET = "Dataset001_Phantom"
CONFIGURATION = "2d_demo"
LABELLED, VALIDATION = 1, 2  # patients
EPOCHS = 5  # of 250 iterations
TRAINERS = {
    "nnU-Net": f"nnUNetTrainer_{EPOCHS}epochs",
    "PLGCL": f"nnUNetTrainerPLGCL_{EPOCHS}epochs",
}
MARKER = ".nnunetv2_plgcl_demo"  # only a folder with this file is ever emptied
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def run_demo(
    output: Path,
    overwrite: bool = False,
    device: str = "cpu",
    trainers: Mapping[str, str] = TRAINERS,
) -> None:
    """Generate, plan, preprocess, split, train, predict, evaluate, compare.

    Args:
        output: folder for everything; nothing is written or read elsewhere.
        overwrite: replace an earlier demo in that folder.
        device: as for ``nnUNetv2_train -device``.
        trainers: name in the table -> trainer class.

    Raises:
        FileExistsError: the folder is not empty.
        RuntimeError: a command failed; with the end of its log.
    """
    prepare_output(output, overwrite)
    output = output.resolve()
    demo = Demo(output, total=6 + 3 * len(trainers))
    raw = output / "nnUNet_raw" / DATASET
    predictions = {name: output / "predictions" / trainer for name, trainer in trainers.items()}
    with demo.progress:
        with demo.stage("generate the phantom"):
            write_phantom(raw)
        demo.run("plan", "nnUNetv2_plan_and_preprocess", "-d", 1, "-c", "2d", "--no_pp",
                 "-npfp", 2)  # fmt: skip
        with demo.stage(f"add {CONFIGURATION} to the plans"):
            plans_file = output / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json"
            add_small_configuration(plans_file)
        demo.run("preprocess", "nnUNetv2_preprocess", "-d", 1, "-c", CONFIGURATION, "-np", 2)
        demo.run("split", "nnUNetv2_plgcl_split", "-d", 1, "--labelled", LABELLED,
                 "--val", VALIDATION)  # fmt: skip
        for trainer in trainers.values():
            demo.train(trainer, device)
        for name, trainer in trainers.items():
            folder = predictions[name]
            demo.run(f"predict_{trainer}", "nnUNetv2_predict", "-i", raw / "imagesTs",
                     "-o", folder, "-d", 1, "-c", CONFIGURATION, "-f", 0, "-tr", trainer,
                     "-device", device, "-npp", 1, "-nps", 1)  # fmt: skip
            demo.run(f"evaluate_{trainer}", "nnUNetv2_evaluate_folder", raw / "labelsTs", folder,
                     "-djfile", folder / "dataset.json", "-pfile", folder / "plans.json",
                     "-np", 2)  # fmt: skip
        with demo.stage("compare"):
            summaries = {
                name: json.loads((folder / "summary.json").read_text())
                for name, folder in predictions.items()
            }
            write_overlay(raw, predictions, output / "overlay.png")
    print(f"\n{dice_table(summaries)}\n")
    print(closing_words(output, demo.commands))


def prepare_output(folder: Path, overwrite: bool) -> None:
    """Make the folder, or empty it of an earlier demo's files.

    Raises:
        FileExistsError: it holds anything and ``overwrite`` is not set, or what it holds was not
            written by a demo.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / MARKER).is_file():
            raise FileExistsError(f"{folder} holds other files. Name a new folder: --output FOLDER")
        if not overwrite:
            raise FileExistsError(f"{folder} holds an earlier demo. --overwrite replaces it.")
        for name in (*NNUNET_FOLDERS, "predictions", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "overlay.png").unlink(missing_ok=True)
    for name in (*NNUNET_FOLDERS, "logs"):
        (folder / name).mkdir(parents=True)
    (folder / MARKER).touch()


def add_small_configuration(plans_file: Path) -> None:
    """Add a 2d configuration that two CPU cores train in a minute or two."""
    plans = json.loads(plans_file.read_text())
    architecture = json.loads(json.dumps(plans["configurations"]["2d"]["architecture"]))
    stages = 4
    arguments = architecture["arch_kwargs"]
    for key in ("kernel_sizes", "strides"):
        arguments[key] = arguments[key][:stages]
    arguments.update(
        n_stages=stages,
        features_per_stage=[8, 16, 32, 64],
        n_conv_per_stage=[1] * stages,
        n_conv_per_stage_decoder=[1] * (stages - 1),
    )
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "2d",
        "data_identifier": f"{plans['plans_name']}_{CONFIGURATION}",
        "patch_size": [64, 64],
        "batch_size": 4,
        "architecture": architecture,
    }
    plans_file.write_text(json.dumps(plans, indent=4))


class Demo:
    """Runs the stages one by one and remembers the commands."""

    def __init__(self, output: Path, total: int) -> None:
        """``total`` is the number of stages to come."""
        self.output = output
        self.commands: list[list[str]] = []
        # tqdm's None: no bar where the output is not a terminal
        self.progress = tqdm(total=total, desc="demo", unit="stage", disable=None)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time a stage, report it, move the bar on."""
        start = time.monotonic()
        yield
        tqdm.write(f"{time.monotonic() - start:6.1f} s  {title}", file=sys.stdout)
        self.progress.update()

    def run(
        self, log: str, *command: object, on_line: Callable[[str], None] = lambda _: None
    ) -> None:
        """Run a console command with its output in ``logs/LOG.txt``."""
        words = [str(word) for word in command]
        self.commands.append(words.copy())
        environment = command_environment(self.output, words[0])
        with self.stage(shlex.join(words)):
            words[0] = console_script(words[0])
            run_logged(words, environment, self.output / "logs" / f"{log}.txt", on_line)

    def train(self, trainer: str, device: str) -> None:
        """Run a training with a bar that follows the epochs in its output."""
        with tqdm(total=EPOCHS, desc=trainer, unit="epoch", leave=False, disable=None) as bar:
            self.run(
                f"train_{trainer}", "nnUNetv2_train", 1, CONFIGURATION, 0, "-tr", trainer,
                "-device", device, on_line=lambda line: bar.update("Epoch time:" in line),
            )  # fmt: skip


def nnunet_folders(output: Path) -> dict[str, str]:
    """nnU-Net's variables for its three folders."""
    return {name: str(output / name) for name in NNUNET_FOLDERS}


def command_environment(output: Path, command: str) -> dict[str, str]:
    """The caller's variables, with nnU-Net's folders inside the demo's and few processes."""
    environment = {**os.environ, **nnunet_folders(output), "nnUNet_def_n_proc": "2"}
    environment["nnUNet_wandb_enabled"] = "0"
    # Threads that wait spinning slow this small network twentyfold once another process wants a
    # core: the one that they wait for does not run.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.pop("nnUNet_n_proc_DA", None)  # the planner crashes under 0
    if command == "nnUNetv2_train":
        environment["nnUNet_n_proc_DA"] = "0"  # on two cores workers only get in the way
    return environment


def console_script(name: str) -> str:
    """Path of a console script of this Python's environment.

    Raises:
        RuntimeError: there is none.
    """
    scripts = Path(sys.executable).parent
    script = shutil.which(name, path=str(scripts))
    if script is None:
        raise RuntimeError(f"There is no {name} in {scripts}. Install with: pip install .")
    return script


def write_overlay(raw: Path, predictions: Mapping[str, Path], file: Path) -> None:
    """Draw one slice of the first test case: image, reference, each method."""
    reference_file = min((raw / "labelsTs").iterdir())
    case = reference_file.name.removesuffix(".nii.gz")
    image = _read(raw / "imagesTs" / f"{case}_0000.nii.gz")
    volumes = {"reference": _read(reference_file)}
    for name, folder in predictions.items():
        volumes[name] = _read(folder / reference_file.name)
    z = slice_with_most_foreground(volumes["reference"])
    slices = {name: volume[z] for name, volume in volumes.items()}
    overlay_figure(image[z], slices, CLASSES, SPACING[1:]).savefig(file, dpi=150)


def _read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def dice_table(summaries: Mapping[str, Mapping]) -> str:
    """Mean Dice similarity coefficient (DSC) of each class and over the classes.

    Args:
        summaries: method -> what nnU-Net wrote to ``summary.json``.
    """
    number = min(len(summary["metric_per_case"]) for summary in summaries.values())
    rows = {
        name: [summary["mean"][str(label)]["Dice"] for summary in summaries.values()]
        for label, name in CLASSES.items()
    }
    rows["mean"] = [summary["foreground_mean"]["Dice"] for summary in summaries.values()]
    lines = [f"{f'DSC, {number} test volumes':<24}" + "".join(f"{name:>12}" for name in summaries)]
    lines += [f"{name:<24}" + "".join(f"{x:12.3f}" for x in row) for name, row in rows.items()]
    return "\n".join(lines)


def closing_words(output: Path, commands: Sequence[Sequence[str]]) -> str:
    """Where things lie, and how to do the same by hand."""
    exports = [f"export {k}={shlex.quote(v)}" for k, v in nnunet_folders(output).items()]
    by_hand = "\n".join(f"  {line}" for line in [*exports, *map(shlex.join, commands)])
    return f"""\
{EPOCHS} short epochs on a generated phantom show that everything runs, not which method is better.

{output}
  overlay.png      a test slice: image, reference and both predictions
  predictions/     segmentations of the test volumes, summary.json with all scores
  nnUNet_results/  trained models, progress.png of each training
  logs/            what each command printed

The same by hand ({CONFIGURATION} is a small configuration that the demo added to nnUNetPlans.json):
{by_hand}"""
