"""The whole way on a generated phantom, with nnU-Net's own commands. Source: ours."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from nnunetv2_plgcl.datasets.phantom import CLASSES, write_phantom
from nnunetv2_plgcl.settings import PLANS_KEY
from nnunetv2_plgcl.workers import run_logged

DATASET = "Dataset001_Phantom"
CONFIGURATION = "2d_demo"
PATIENTS = 29  # to train with, labelled or not
LABELLED, VALIDATION = 2, 2  # of these
EPOCHS = 10  # of 250 iterations
TRAINERS = {
    "nnU-Net": f"nnUNetTrainer_{EPOCHS}epochs",
    "PLGCL": f"nnUNetTrainerPLGCL_{EPOCHS}epochs",
}
MARKER = ".nnunetv2_plgcl_demo"  # only a folder with this file is ever emptied
COMPARISON = "comparison"
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def run_demo(
    output: Path,
    overwrite: bool = False,
    device: str = "cpu",
    seed: int = 0,
    trainers: Mapping[str, str] = TRAINERS,
) -> None:
    """Generate, plan, preprocess, split, train, compare on the test cases.

    Args:
        output: folder for everything; nothing is written or read elsewhere.
        overwrite: replace an earlier demo in that folder.
        device: as for ``nnUNetv2_train -device``.
        seed: of the phantom, the split and our trainers; nnU-Net's own takes none.
        trainers: name in the table -> trainer class.

    Raises:
        FileExistsError: the folder is not empty.
        RuntimeError: a command failed; with the end of its log.
    """
    prepare_output(output, overwrite)
    output = output.resolve()
    demo = Demo(output, total=6 + len(trainers))
    raw = output / "nnUNet_raw" / DATASET
    with demo.progress:
        with demo.stage("generate the phantom"):
            write_phantom(raw, PATIENTS, seed=seed)
        demo.run("plan", "nnUNetv2_plan_and_preprocess", "-d", 1, "-c", "2d", "--no_pp",
                 "-npfp", 2)  # fmt: skip
        with demo.stage(f"add {CONFIGURATION} to the plans"):
            plans_file = output / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json"
            add_small_configuration(plans_file, seed)
        demo.run("preprocess", "nnUNetv2_preprocess", "-d", 1, "-c", CONFIGURATION, "-np", 2)
        demo.run("split", "nnUNetv2_plgcl_split", "-d", 1, "--labelled", LABELLED,
                 "--val", VALIDATION, "--seed", seed)  # fmt: skip
        demo.train(list(trainers.values()), device)
        demo.run("compare", "nnUNetv2_plgcl_compare", "-d", 1, "-c", CONFIGURATION, "-f", 0,
                 "-tr", *trainers.values(), "--test", raw / "imagesTs", raw / "labelsTs",
                 "--run", "-device", device, "--np", 2, "-o", output / COMPARISON)  # fmt: skip
    print(f"\n{dice_table(pd.read_csv(output / COMPARISON / 'scores.csv'), trainers)}\n")
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
        for name in (*NNUNET_FOLDERS, COMPARISON, "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*NNUNET_FOLDERS, "logs"):
        (folder / name).mkdir(parents=True)
    (folder / MARKER).touch()


def add_small_configuration(plans_file: Path, seed: int) -> None:
    """Add a 2d configuration that a CPU core trains in minutes, with the seed of our trainers."""
    plans = json.loads(plans_file.read_text())
    architecture = json.loads(json.dumps(plans["configurations"]["2d"]["architecture"]))
    stages = 4
    arguments = architecture["arch_kwargs"]
    for key in ("kernel_sizes", "strides"):
        arguments[key] = arguments[key][:stages]
    arguments.update(
        n_stages=stages,
        features_per_stage=[8, 16, 32, 64],
        n_conv_per_stage=[1, 2, 2, 2],
        n_conv_per_stage_decoder=[1] * (stages - 1),
    )
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "2d",
        "data_identifier": f"{plans['plans_name']}_{CONFIGURATION}",
        "spacing": [18 / 7, 18 / 7],  # mm, so that a patch is a slice
        "patch_size": [56, 56],
        "batch_size": 4,
        "architecture": architecture,
        PLANS_KEY: {"seed": seed},
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
        self.progress.set_postfix_str(log)
        environment = command_environment(self.output, words[0])
        with self.stage(shlex.join(words)):
            words[0] = console_script(words[0])
            run_logged(words, environment, self.output / "logs" / f"{log}.txt", on_line)

    def train(self, trainers: Sequence[str], device: str) -> None:
        """Run trainings side by side, a core each: so small a network gains nothing by two. Each
        has a bar that follows the epochs in its output."""

        def train_one(trainer: str, position: int) -> None:
            with tqdm(
                total=EPOCHS, desc=trainer, unit="epoch", position=position, leave=False,
                disable=None,
            ) as bar:  # fmt: skip
                self.run(
                    f"train_{trainer}", "nnUNetv2_train", 1, CONFIGURATION, 0, "-tr", trainer,
                    "-device", device, on_line=lambda line: bar.update("Epoch time:" in line),
                )  # fmt: skip

        with ThreadPoolExecutor(len(trainers)) as pool:
            for done in [pool.submit(train_one, t, i) for i, t in enumerate(trainers, 1)]:
                done.result()


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
        environment.setdefault("OMP_NUM_THREADS", "1")  # see Demo.train
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


def dice_table(scores: pd.DataFrame, trainers: Mapping[str, str]) -> str:
    """Mean Dice similarity coefficient (DSC) of each class and over the classes.

    Args:
        scores: content of the comparison's ``scores.csv``.
        trainers: name in the table -> trainer class.
    """
    dice = scores[scores["metric"] == "DSC"]
    table = dice.pivot_table("value", "class", "trainer", sort=False)
    rows = {name: table.loc[name] for name in CLASSES.values()} | {"mean": table.mean()}
    title = f"DSC, {dice['case'].nunique()} test volumes"
    lines = [f"{title:<24}" + "".join(f"{name:>12}" for name in trainers)]
    lines += [
        f"{name:<24}" + "".join(f"{row[trainer]:12.3f}" for trainer in trainers.values())
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def closing_words(output: Path, commands: Sequence[Sequence[str]]) -> str:
    """Where things lie, and how to do the same by hand."""
    exports = [f"export {k}={shlex.quote(v)}" for k, v in nnunet_folders(output).items()]
    by_hand = "\n".join(f"  {line}" for line in [*exports, *map(shlex.join, commands)])
    return f"""\
{EPOCHS} short epochs on a generated phantom show that everything runs, and what unlabelled patients
add where {LABELLED} labelled ones do not show what the others look like. Real data differ from it.

{output}
  comparison/      report.html, its tables and figures, predictions of the test volumes
  nnUNet_results/  trained models, progress.png of each training
  logs/            what each command printed

The same by hand ({CONFIGURATION} is a small configuration that the demo added to nnUNetPlans.json):
{by_hand}

Open the report in a browser: {output / COMPARISON / "report.html"}"""
