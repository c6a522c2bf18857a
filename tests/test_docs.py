"""The README and the pages in docs/: their commands exist and do what is said, the site builds."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pandas
import pytest
from conftest import TINY, Prepared

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    *sorted((CHECKOUT / "docs").glob("*.md")),
]
SCRIPTS = CHECKOUT / "scripts"
EXTRAS = metadata("nnunetv2-plgcl").get_all("Provides-Extra")
CONSOLE = {point.name: point for point in entry_points(group="console_scripts")}
# programs that are not ours, with the words that must follow
OTHERS = (
    "conda create", "conda activate", "docker run", "export",
    "pip install --target", "pip uninstall nnunetv2-plgcl",
)  # fmt: skip


def code_of(page: str) -> Iterator[str]:
    """Lines of a page's code blocks, a command with its continuations as one line."""
    fenced = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    indented = "\n".join(re.findall(r"^(?: {4,}|\t)(.*)$", page, re.MULTILINE))
    for block in (fenced, indented):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def is_command(line: str) -> bool:
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    starts = r"nnUNetv2_\w+|bash|pip|python3?|docker|conda|mkdocs|ruff|mypy|git|export|twine"
    return bool(words) and re.fullmatch(starts, words[0]) is not None


def commands() -> list[tuple[str, str]]:
    """Each command of each page, in code blocks and, with arguments, inside sentences."""
    found = []
    for page in PAGES:
        text = page.read_text()
        inline = re.findall(r"(?<!`)`(nnUNetv2_\w+ [^`]+|pip install [^`]+)`(?!`)", text)
        found += [(page.name, line) for line in [*code_of(text), *inline] if is_command(line)]
    return list(dict.fromkeys(found))


class ParsedError(Exception):
    """The command's arguments were understood."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop when their arguments are parsed."""
    parse = ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse(parser, *arguments)
        raise ParsedError

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_and_stop)


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    CONSOLE[words[0]].load()()


def variables_of_scripts() -> set[str]:
    """What the scripts read from the environment."""
    texts = "\n".join(file.read_text() for file in SCRIPTS.glob("*.sh"))
    return set(re.findall(r"\$\{([A-Z_]+)[:\-]", texts))


@pytest.mark.parametrize(("page", "line"), commands())
def test_command_and_options_exist(page, line, parse_only, monkeypatch, capsys):
    words = shlex.split(line, comments=True)
    variables = [words.pop(0) for _ in list(words) if re.match(r"[A-Z_]+=", words[0])]
    assert {word.split("=")[0] for word in variables} <= variables_of_scripts()
    if words[0] in CONSOLE and words[0].startswith("nnUNetv2_"):
        if "--help" in words:
            with pytest.raises(SystemExit) as stopped:
                call(words, monkeypatch)
            assert stopped.value.code == 0
            return
        with pytest.raises(ParsedError):
            call(words, monkeypatch)
    elif words[:2] == ["pip", "install"] and "--target" not in words:
        checkout = re.fullmatch(r"(?:-e )?\.(?:\[([a-z0-9,]+)\])?", " ".join(words[2:]))
        assert checkout, "only the checkout is installed"
        assert set((checkout[1] or "docs").split(",")) <= set(EXTRAS)
    elif words[0] == "bash":
        script = words[1].removeprefix("PACKED/checkout/")
        assert (CHECKOUT / script).is_file()
    elif words[0] in ("python", "python3") and words[1] == "-m":
        assert words[2] in ("build", "pytest", "twine")
        for word in words[3:]:
            assert not word.startswith("tests/") or (CHECKOUT / word.split("::")[0]).exists()
    elif words[0] in ("python", "python3"):
        script = CHECKOUT / words[1].removeprefix("PACKED/checkout/")
        assert script.is_file()
        if script.name == "benchmark.py":
            monkeypatch.syspath_prepend(str(SCRIPTS))
            with pytest.raises(ParsedError):
                runpy.run_path(str(script))["read_arguments"](words[2:])
    elif words[:2] == ["docker", "build"]:
        arguments = [word.split("=")[0] for word in words if "=" in word]
        declared = re.findall(r"^ARG (\w+)", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(declared) and words[-1] == "."
    elif words[0] in ("mkdocs", "ruff", "mypy", "twine"):
        pytest.importorskip(words[0])  # what checks the code is no part of the test environment
        help_text = subprocess.run(
            [sys.executable, "-m", *words[:1], *words[1:2], "--help"],
            capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        assert help_text.returncode == 0, help_text.stderr
        for word in words[2:]:
            assert not word.startswith("--") or word in help_text.stdout
    else:
        assert line.startswith(OTHERS), f"{page}: how can '{line}' be checked?"


QUICK = ("split", "preprocess", "check", "evaluate")  # our commands that take seconds
QUICK_OF_PAGES = {
    "README.md": QUICK, "docs/use.md": QUICK,
    "docs/planning.md": ("split",),  # after --strict nnU-Net has to plan and preprocess again
    "docs/evaluation.md": ("evaluate", "compare"),
}  # fmt: skip


def test_quick_commands_run(prepared: Prepared, monkeypatch, in_this_process):
    """In the order of the page, on a dataset of real images where they are at hand."""
    segmentations = prepared.preprocessed / "gt_segmentations"
    here = {
        "42": "901", "2d": TINY, "0.1": "0.5", "7": "2",
        "A=FOLDER_A": f"A={segmentations}", "B=FOLDER_B": f"B={segmentations}",
        "dataset.json": str(prepared.preprocessed / "dataset.json"),
        "LABELS": str(segmentations), "OUTPUT": str(segmentations),
        "OUTPUT/dataset.json": str(prepared.preprocessed / "dataset.json"),
    }  # fmt: skip
    images = prepared.base / "nnUNet_raw" / prepared.name
    (images / "imagesUn").mkdir()
    first = sorted((images / "imagesTr").iterdir())[0]
    (images / "imagesUn" / "other_0000.nii.gz").write_bytes(first.read_bytes())
    ran = set()
    monkeypatch.chdir(prepared.base)
    for page, quick in QUICK_OF_PAGES.items():
        prepared.preprocessed.joinpath("splits_final.json").unlink()
        for line in filter(is_command, code_of((CHECKOUT / page).read_text())):
            line = line.replace("-o OUTPUT", "-o written")
            words = [here.get(word, word) for word in shlex.split(line, comments=True)]
            name = words[0].removeprefix("nnUNetv2_plgcl_")
            if name == "compare" and "--predictions" not in words:
                continue  # it trains
            if name in quick:
                try:
                    call(words, monkeypatch)
                except SystemExit as stopped:
                    assert not stopped.code, line
                ran.add(name)
    assert ran == {*QUICK, "compare"}


def test_readme_is_short_and_links_to_what_exists():
    readme = (CHECKOUT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", readme):
        assert target.startswith("https://") or (CHECKOUT / target).exists(), target


class Resources(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag != "a" and attributes.get("rel") != "canonical":
            self.found += [
                attributes[key] or "" for key in ("src", "href", "srcset") if key in attributes
            ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=CHECKOUT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_builds_with_every_page_search_and_api(site):
    for page in (CHECKOUT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    assert "sampled_info_nce" in (site / "search" / "search_index.json").read_text()
    assert "InfoNCE" in (site / "api.html").read_text()


def test_pages_load_nothing_from_the_network(site):
    for page in site.rglob("*.html"):
        resources = Resources()
        resources.feed(page.read_text())
        assert resources.found
        assert not [r for r in resources.found if re.match(r"(\w+:)?//", r)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style


def test_links_between_pages_stay_inside_docs():
    """A page reads the same on a forge: what lies outside docs/ is named as code."""
    for page in (CHECKOUT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            inside = (page.parent / target).resolve().is_relative_to(CHECKOUT / "docs")
            assert target.startswith("https://") or inside, f"{page.name}: {target}"


def test_settings_page_is_what_the_settings_say():
    script = runpy.run_path(str(SCRIPTS / "document_settings.py"))
    page = (CHECKOUT / "docs" / "settings.md").read_text()
    assert page == script["written"](page), "python scripts/document_settings.py"


def test_tables_of_results_are_those_of_the_rows():
    script = runpy.run_path(str(SCRIPTS / "document_results.py"))
    page = (CHECKOUT / "docs" / "results.md").read_text()
    assert page == script["written"](page, script["read_rows"]()), "scripts/document_results.py"
    # the best overlap of the first table, by a reader that shares nothing with the script
    rows = pandas.read_csv(CHECKOUT / "docs" / "scores" / "benchmark.csv")
    of_table = "dataset == 'acdc' and split == 'val' and settings == '{}' and labelled == 3"
    means = 100 * rows.query(of_table).groupby("trainer")["DSC"].mean()
    best = re.search(r"^\| 3 \| `(\w+)` \| \d \| \*\*([\d.]+)", page, re.MULTILINE)
    assert best[1] == means.idxmax() and float(best[2]) == pytest.approx(means.max(), abs=0.006)
    # the methods that come last in the table of all datasets, likewise
    rows = rows.query("split == 'val' and settings == '{}'")
    every = [("acdc", 3), ("acdc", 7), ("hippocampus", 4), ("liver", 8)]
    rows = rows[[pair in every for pair in zip(rows.dataset, rows.labelled, strict=True)]]
    means = rows.groupby(["trainer", "dataset", "labelled"])["DSC"].mean().unstack([1, 2]).dropna()
    for name, mean in (100 * means.mean(axis=1)).items():
        cells = re.search(rf"^\| `{name}` \|.*\| \**([\d.]+)\** \| \**[\d.]+\** \|$", page, re.M)
        assert float(cells[1]) == pytest.approx(mean, abs=0.006)
    # a training that was repeated takes the place of its row, any other is added
    first, *others = script["read_rows"]()
    again, new = {**first, "DSC": "0.5"}, {**first, "seed": "9"}
    merged = script["merged"]([first, *others], [again, new])
    assert sorted(map(str, merged)) == sorted(map(str, [again, new, *others]))


def test_the_readme_has_the_figures_of_results():
    """Every row of its table, number by number."""
    line = re.compile(r"^\|([^|]*)\| `(\w+)` \|(.*)\|$", re.MULTILINE)
    of_results, labelled, found = {}, "", 0
    for number, trainer, cells in line.findall((CHECKOUT / "docs" / "results.md").read_text()):
        if number.strip().isdecimal():
            figures = set(re.findall(r"\d+\.\d\d", cells))
            of_results.setdefault((number.strip(), trainer), figures)
    for number, trainer, cells in line.findall((CHECKOUT / "README.md").read_text()):
        labelled = number.split()[0] if number.strip() else labelled
        figures = set(re.findall(r"\d+\.\d\d", cells))
        assert figures <= of_results[labelled, trainer], (labelled, trainer)
        found += bool(figures)
    assert found >= 4


def test_the_readme_has_the_means_of_the_rows():
    """Its table of data and methods, DSC and HD95 of each."""
    rows = pandas.read_csv(CHECKOUT / "docs" / "scores" / "benchmark.csv")
    rows = rows.query("split == 'val' and settings == '{}'")
    means = rows.groupby(["dataset", "labelled", "trainer"])[["DSC", "HD95"]].mean()
    trainers = [f"nnUNetTrainer{name}" for name in ("", "MeanTeacher", "UniMatch", "PLGCL")]
    line = re.compile(r"^\| (\w+)[^|]*, (\d) (?:patients|cases) \|(.*)\|$", re.MULTILINE)
    found = 0
    for dataset, labelled, cells in line.findall((CHECKOUT / "README.md").read_text()):
        for trainer, cell in zip(trainers, cells.replace("*", "").split("|"), strict=True):
            if cell.strip():
                mean = means.loc[dataset.lower(), int(labelled), trainer]
                assert cell.strip() == f"{100 * mean.DSC:.1f} / {mean.HD95:.1f}"
                found += 1
    assert found >= 18
