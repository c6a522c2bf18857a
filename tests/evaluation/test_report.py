"""The report of a comparison in a real browser, on a desk and on a telephone."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_plgcl.evaluation import comparison as library
from nnunetv2_plgcl.evaluation import tables
from nnunetv2_plgcl.evaluation.comparison import METRICS, Comparison
from nnunetv2_plgcl.evaluation.figures import box_plot, learning_curves
from nnunetv2_plgcl.evaluation.report import Picture, picture_of, write_report
from nnunetv2_plgcl.evaluation.runs import Course, Run

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerMeanTeacher", "nnUNetTrainerPLGCL_confidenceGuide")
MANY = (*TRAINERS, *(f"nnUNetTrainerVolumePseudoLabels{letter}" for letter in "ABCDEFGHIJ"))
CASES = 12


def comparison_of(
    amounts: tuple[int, ...] = (14, 6), seeds: int = 2, trainers: tuple[str, ...] = TRAINERS
) -> Comparison:
    """Scores that each trainer leads by 0.1 or a little more; one distance is missing."""
    rng = np.random.default_rng(0)
    rows, courses = [], {}
    for fold, labelled in enumerate(amounts):
        level = rng.uniform(0.4, 0.6, (CASES, 2))
        for place, trainer in enumerate(trainers):
            for seed in range(seeds):
                run = Run("Dataset001_X", trainer, "nnUNetPlans", "2d", fold, seed)
                courses[run] = Course((0.1, 0.4, 0.5 + 0.1 * place), 90.0, 300, 8, None)
                for case in range(CASES):
                    for k, of_class in enumerate(("RV", "LV")):
                        missing = (place, seed, case, k) == (0, 0, 0, 0)
                        for metric in METRICS:
                            value = level[case, k] + 0.1 * place * (1 + case / 100) + 0.01 * seed
                            rows.append({
                                "trainer": trainer, "labelled": labelled, "share": labelled / 140,
                                "fold": fold, "seed": seed, "case": f"case{case:02d}",
                                "class": of_class, "metric": metric,
                                "value": np.nan if missing and metric != "DSC" else value,
                                "empty": "prediction" if missing else None,
                            })  # fmt: skip
    return Comparison(trainers, ("RV", "LV"), "mm", pd.DataFrame(rows), courses)


def test_table_counts_a_case_once_whatever_its_repetitions():
    comparison = comparison_of()
    results = library.results(comparison)
    scores = comparison.scores
    for row in results.to_dict("records"):
        of = scores[(scores.trainer == row["trainer"]) & (scores.labelled == row["labelled"])]
        per_case = [
            np.mean([of[(of.case == c) & (of.metric == "DSC")]["value"]])
            for c in sorted(set(of.case))
        ]
        assert row["DSC"] == pytest.approx(np.mean(per_case))
        assert row["DSC low"] < row["DSC"] < row["DSC high"]
        assert row["DSC sd over seeds"] == pytest.approx(0.01 / np.sqrt(2))
        assert row["empty predictions"] == (1 if row["trainer"] == TRAINERS[0] else 0)
        assert row["ms per iteration"] == pytest.approx(300) and np.isnan(row["peak memory (GiB)"])
    one_seed = library.results(comparison_of(seeds=1))
    assert one_seed["DSC sd over seeds"].isna().all()
    # twelve differences of one sign: 2 / 2**12, which Holm multiplies by the number of tests
    tests = library.tests(comparison)
    dice = tests[tests.metric == "DSC"]
    assert dice["difference"].to_numpy() == pytest.approx([0.1055, 0.211] * 2)
    assert dice["p"].to_numpy() == pytest.approx(2 / 2**12)
    assert dice["p (Holm)"].to_numpy() == pytest.approx(4 * 2 / 2**12)


def test_a_trainer_gains_no_distance_by_a_class_that_it_misses():
    """B is as far off as A, but misses the class of large distances in every second case."""
    comparison = comparison_of((14,), seeds=1)
    scores = comparison.scores.copy()
    one, other = TRAINERS[:2]
    far = (scores["class"] == "RV") & (scores["metric"] == "HD95")
    for trainer in (one, other):
        of = scores["trainer"] == trainer
        scores.loc[of & (scores["metric"] == "HD95"), "value"] = 2.0
        scores.loc[of & far, "value"] = 20.0
    missed = (scores["trainer"] == other) & scores["case"].isin([f"case{n:02d}" for n in (1, 3, 5)])
    scores.loc[missed & far, "value"] = np.nan
    tests = library.tests(replace(comparison, scores=scores, trainers=(one, other)))
    (row,) = tests[tests["metric"] == "HD95"].to_dict("records")
    assert row["difference"] == 0 and row["p"] == 1 and row["left out"] == 3
    assert row["cases"] == CASES


@pytest.mark.parametrize(
    ("trainers", "short"),
    [
        (["nnUNetTrainer", "nnUNetTrainerBCP"], ["nnU-Net", "BCP"]),
        (["nnUNetTrainer_5epochs", "nnUNetTrainerPLGCL_5epochs"],
         ["nnU-Net_5epochs", "PLGCL_5epochs"]),
        (["nnUNetTrainer", "MyTrainer"], ["nnUNetTrainer", "MyTrainer"]),
    ],
)  # fmt: skip
def test_names_are_shortened_where_all_are_of_nnunets_kind(trainers, short):
    comparison = replace(comparison_of((14,)), trainers=tuple(trainers))
    assert [comparison.short_name(trainer) for trainer in trainers] == short


def test_cases_to_show_are_ranked_over_all_trainers():
    comparison = comparison_of((14,))
    means = comparison.per_case(14, "DSC").mean(axis=1)
    shown = library.cases_to_show(comparison, 14)
    assert means[shown["best"]] == means.max() and means[shown["worst"]] == means.min()
    assert (means < means[shown["median"]]).sum() == CASES // 2


@settings(deadline=None)  # a loaded machine is no fault
@given(st.lists(st.text("ab_%&|#<", min_size=1, max_size=5), min_size=1, max_size=3))
def test_latex_escapes_what_is_special_there(names):
    latex = tables.to_latex(pd.DataFrame({"trainer": names, "DSC (%)": "1 ± 2"}))
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count(r"$\pm$") == len(names)
    for special in "_%#":
        assert body.count("\\" + special) == sum(name.count(special) for name in names)


def test_distances_in_every_table_have_their_unit(tmp_path):
    comparison = replace(comparison_of(), unit="pixels")
    results, tests = library.results(comparison), library.tests(comparison)
    tables.write_tables(comparison, results, tests, tmp_path)
    assert set(pd.read_csv(tmp_path / "table.csv")["unit"]) == {"pixels"}
    for name in ("tests.csv", "scores.csv"):
        table = pd.read_csv(tmp_path / name, keep_default_na=False)
        units = {metric: set(rows["unit"]) for metric, rows in table.groupby("metric")}
        assert units["DSC"] == {""} and units["HD95"] == {"pixels"}, name
    for name in ("table.md", "table.tex"):
        text = (tmp_path / name).read_text()
        assert "HD95 (pixels)" in text[text.index("Tests") :]


@pytest.fixture
def report(tmp_path):
    comparison = comparison_of(trainers=MANY)
    results = library.results(comparison)
    tests = tables.readable_tests(comparison, library.tests(comparison))
    wide = box_plot(comparison, "DSC")
    wide.set_size_inches(13, 3)
    sections: dict[str, list[Picture]] = {
        "Cases": [picture_of(metric, box_plot(comparison, metric)) for metric in METRICS],
        "Learning": [picture_of("14 <labelled>", learning_curves(comparison, 14))],
        "Segmentations": [picture_of("wide", wide, wide=True)],
    }
    facts = {"plans": "nnUNetPlans", "fold 0": "14 labelled & 126 unlabelled"}
    file = tmp_path / "report.html"
    write_report(file, "A <title>", facts, tables.readable(comparison, results), tests, sections)
    return file, sections, len(results)


def test_report_needs_no_other_file(report):
    html = report[0].read_text()
    assert "A &lt;title&gt;" in html and "14 &lt;labelled&gt;" in html
    assert "http://" not in html and "https://" not in html and 'src="data:image/png' in html


@pytest.fixture(scope="module")
def browser():
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update",
                 "--disable-sync", "--hide-scrollbars"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


@pytest.mark.parametrize("width", [1280, 390])
def test_report_in_a_browser(report, browser, width):
    file, sections, rows = report
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(file.as_uri())
    assert browser.get_log("browser") == []
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt])"
    )
    pictures = [picture for of_section in sections.values() for picture in of_section]
    assert [size[3] for size in sizes] == [picture.title for picture in pictures]
    for (complete, natural, shown, _), picture in zip(sizes, pictures, strict=True):
        assert complete and natural > 0
        # readable: a narrow picture keeps most of a telephone's width, a wide one scrolls
        assert shown >= (600 if picture.wide else min(340, width))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if width == 1280:  # every table at once, without scrolling sideways
        tables_shown = browser.execute_script(
            "return [...document.querySelectorAll('.scroll:has(table)')]"
            ".map(t => [t.scrollWidth, t.clientWidth])"
        )
        assert len(tables_shown) == 4 and all(inside <= room for inside, room in tables_shown)
    assert browser.execute_script("return innerWidth") == width
    cells = browser.execute_script(
        "return [...document.querySelectorAll('table')[0].tBodies[0].rows].map(r => r.cells.length)"
    )
    assert len(cells) == rows and len(set(cells)) == 1
