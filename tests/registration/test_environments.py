"""Registration in real virtual environments: nnU-Net finds the trainers, and nothing stays behind.

The environments are layered over the installed dependencies: links to everything in this
interpreter's site-packages but this project itself.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nnunetv2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "nnUNetTrainerPLGCL"
LOOK_UP = f"""
import json, multiprocessing, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

def found(_=None):
    return find({NAME!r}).__module__ + "." + find({NAME!r}).__qualname__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(found, [0])[0]
    same = find({NAME!r}) is find({NAME!r})
    print("RESULT" + json.dumps({{"here": found(), "spawned": spawned, "same": same}}))
"""
EXPECTED = f"nnunetv2_plgcl.trainers.{NAME}.{NAME}"


class Environment:
    """A virtual environment that sees the dependencies but not this project."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        self.packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
        layer = folder / "dependencies"
        layer.mkdir()
        for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
            ours = "nnunetv2_plgcl" in entry.name
            if not ours and entry.suffix != ".pth" and entry.name != "__pycache__":
                (layer / entry.name).symlink_to(entry)
        (self.packages / "dependencies.pth").write_text(f"{layer}\n")
        self.folder = folder

    def run(self, *arguments: object, expect: int = 0, **variables: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "PYTH"))}
        done = subprocess.run(
            [str(self.python), *map(str, arguments)],
            env={**environment, "PYTHONWARNINGS": "ignore", **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def pip(self, *arguments: object) -> str:
        return self.run("-m", "pip", "--no-cache-dir", "--disable-pip-version-check", *arguments)

    def install(self, *what: object) -> None:
        self.pip("install", "--no-deps", "--no-build-isolation", *what)

    def look_up(self, **variables: str) -> dict:
        script = self.folder / "look_up.py"
        script.write_text(LOOK_UP)
        output = self.run(script, **variables)
        return json.loads(output[output.index("RESULT") + len("RESULT") :])

    def files(self) -> set[str]:
        """Every path in the environment; of the compiled files only ours."""
        found = (str(f.relative_to(self.folder)) for f in (self.folder / "venv").rglob("*"))
        return {f for f in found if "__pycache__" not in f or "nnunetv2_plgcl" in f}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would be published: a source distribution, and the wheel built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(CHECKOUT)], check=True, capture_output=True)
    return folder


@pytest.fixture
def wheel(distributions: Path) -> Path:
    return next(distributions.glob("*.whl"))


def copy_of_checkout(folder: Path) -> Path:
    for name in ("nnunetv2_plgcl", "trainers", "packaging"):
        shutil.copytree(
            CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder)
    return folder


def hash_of_nnunet() -> str:
    total = hashlib.sha256()
    for file in sorted(Path(nnunetv2.__path__[0]).rglob("*.py")):
        total.update(str(file).encode() + file.read_bytes())
    return total.hexdigest()


def test_a_wheel_registers_the_trainers_and_leaves_nothing_behind(environment, wheel):
    before, nnunet = environment.files(), hash_of_nnunet()
    environment.install(wheel)
    assert environment.look_up() == {"here": EXPECTED, "spawned": EXPECTED, "same": True}
    environment.pip("uninstall", "-y", "nnunetv2-plgcl")
    assert environment.files() == before
    assert hash_of_nnunet() == nnunet
    assert environment.run("-c", "import os; print(os.environ.get('nnUNet_extTrainer'))") == (
        "None\n"
    )


def test_what_would_be_published_is_complete_and_works(distributions, environment):
    version = importlib.metadata.version("nnunetv2-plgcl")
    names = {file.name for file in distributions.iterdir()}
    assert names == {
        f"nnunetv2_plgcl-{version}.tar.gz", f"nnunetv2_plgcl-{version}-py3-none-any.whl"
    }  # fmt: skip
    check = [sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir()]
    subprocess.run(check, check=True, capture_output=True)
    environment.install(next(distributions.glob("*.tar.gz")))
    assert environment.look_up() == {"here": EXPECTED, "spawned": EXPECTED, "same": True}
    script = environment.python.with_name("nnUNetv2_plgcl_demo")
    assert "--seed N" in environment.run(script, "--help")
    template = "import nnunetv2_plgcl.evaluation as e; print(*e.__path__)"
    assert (Path(environment.run("-c", template).strip()) / "report.html.jinja").is_file()
    write = "phantom.write_phantom(phantom.Path('raw/Dataset001_Phantom'), 4, 0)"
    environment.run("-c", f"from nnunetv2_plgcl.datasets import phantom; {write}")
    split = environment.python.with_name("nnUNetv2_plgcl_split")
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed"}
    said = environment.run(split, "-d", 1, "--labelled", 1, "--strict", **folders)
    assert "labelled 2 cases of 1 groups" in said and "4 images moved to imagesUn" in said


def test_the_version_is_the_newest_release_or_leads_to_the_next_one():
    version = Version(importlib.metadata.version("nnunetv2-plgcl"))
    changelog = (CHECKOUT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d[^]]*)\] - ", changelog, re.MULTILINE)[1]
    assert f"version: {newest}\n" in (CHECKOUT / "CITATION.cff").read_text()
    begun = version.is_devrelease and "## [Unreleased]" in changelog and version > Version(newest)
    assert begun or version == Version(newest)


def test_every_package_that_is_imported_is_declared():
    required = importlib.metadata.requires("nnunetv2-plgcl")
    declared = {canonicalize_name(Requirement(line).name) for line in required}
    of_package = importlib.metadata.packages_distributions()
    ours = [file for f in ("nnunetv2_plgcl", "trainers") for file in (CHECKOUT / f).rglob("*.py")]
    for file in ours:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for package in {name.partition(".")[0] for name in names}:
                if package not in sys.stdlib_module_names and package != "nnunetv2_plgcl":
                    made_by = {canonicalize_name(name) for name in of_package[package]}
                    assert made_by & declared, f"{file} imports {package}"


def test_an_editable_install_registers_follows_edits_and_leaves_nothing_behind(
    environment, tmp_path
):
    before = environment.files()
    checkout = copy_of_checkout(tmp_path / "checkout")
    environment.install("-e", checkout)
    assert environment.look_up() == {"here": EXPECTED, "spawned": EXPECTED, "same": True}
    with open(checkout / "trainers" / f"{NAME}.py", "a") as stream:
        stream.write(f"\n\n{NAME}.edited = True\n")
    read_edit = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as f\n"
        f"print('edited' if f('{NAME}').edited else '')"
    )
    assert environment.run("-c", read_edit).endswith("edited\n")
    environment.pip("uninstall", "-y", "nnunetv2-plgcl")
    assert environment.files() == before


def test_the_users_own_folder_stays_and_comes_first(environment, wheel, tmp_path):
    environment.install(wheel)
    own = tmp_path / "own"
    own.mkdir()
    (own / "own_trainer.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        f"class {NAME}(nnUNetTrainer):\n    pass\n"
    )
    folders = environment.run(
        "-c", "import os; print(os.environ['nnUNet_extTrainer'])", nnUNet_extTrainer=str(own)
    )
    assert folders.strip().split(os.pathsep) == [
        str(own),
        str(environment.packages / "nnunetv2_plgcl" / "ext_trainer"),
    ]
    assert environment.look_up(nnUNet_extTrainer=str(own))["here"] == f"own_trainer.{NAME}"


def test_the_console_script_of_nnunet_finds_the_trainer(environment, wheel):
    environment.install(wheel)
    train = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
    folders = {f"nnUNet_{name}": str(environment.folder) for name in ("raw", "preprocessed")}
    output = environment.run(
        "-c", train, "1", "2d", "0", "-tr", NAME, "-device", "cpu", expect=1,
        nnUNet_results=str(environment.folder), **folders,
    )  # fmt: skip
    assert f"Using trainer '{NAME}' from: " in output  # and then there is no dataset 1


def test_start_up_imports_nothing_heavy(environment, wheel):
    modules = "import sys; print(*sorted(sys.modules), sep='\\n')"
    before = set(environment.run("-c", modules).split())
    environment.install(wheel)
    after = set(environment.run("-c", modules).split())
    assert after - before == {"nnunetv2_plgcl", "nnunetv2_plgcl.registration"}


def test_the_folder_passed_on_to_another_environment_offers_nothing(environment):
    folder = CHECKOUT / "nnunetv2_plgcl" / "ext_trainer"
    look_up = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as f\n"
        "try:\n    f('SomeTrainer')\nexcept RuntimeError as error:\n    print(error)"
    )
    message = environment.run("-c", look_up, nnUNet_extTrainer=str(folder))
    assert "Could not find requested nnunet trainer SomeTrainer" in message


def test_the_documented_fallback_works_without_start_up_file(environment, wheel):
    environment.install(wheel)
    (environment.packages / "nnunetv2_plgcl.pth").unlink()
    (environment.packages / "nnunetv2_plgcl.start").unlink()
    found = environment.look_up(nnUNet_extTrainer=str(CHECKOUT / "trainers"))
    assert found["here"] == f"{NAME}.{NAME}"


def test_every_trainer_file_holds_the_class_of_its_name():
    from nnunetv2_plgcl.trainers import trainer_classes

    files = (CHECKOUT / "trainers").rglob("nnUNetTrainer*.py")
    classes = trainer_classes()
    assert sorted(classes) == sorted(file.stem for file in files) and NAME in classes
    for name, trainer in classes.items():
        assert trainer.__module__.endswith(f".{name}") and trainer.__name__ == name
