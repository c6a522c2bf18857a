"""How sure a pseudo-label is, and the record that says so."""

import hashlib
import json
import math

import numpy as np
import pytest

from nnunetv2_plgcl.pseudolabels.predict import dice_with_mean, mean_probability
from nnunetv2_plgcl.pseudolabels.record import RECORD, entry, pseudo_labels


def test_agreement_by_hand():
    mean = np.array([0, 1, 1, 2, 2, 2])
    one = np.array([0, 1, 0, 2, 2, 2])
    two = np.array([1, 1, 1, 0, 0, 0])
    found = dice_with_mean([one, two], mean, [1, 2, 3, (1, 2)])
    assert found[0] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found[1] == pytest.approx((1 + 0) / 2)
    assert math.isnan(found[2])
    assert found[3] == pytest.approx((2 * 4 / 9 + 2 * 2 / 8) / 2)


def test_mean_probability_by_hand():
    probabilities = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.0, 0.1, 0.5]])
    segmentation = probabilities.argmax(0)
    assert mean_probability(segmentation, probabilities, [1, 2]) == [0.8, 0.5]
    assert math.isnan(mean_probability(segmentation * 0, probabilities, [1, 2])[0])
    regions = np.array([[0.2, 0.9, 0.7], [0.1, 0.1, 0.8]])  # whole, core: no background
    found = mean_probability(np.array([0, 1, 2]), regions, [(1, 2), 2])
    assert found == pytest.approx([0.8, 0.8])


def test_a_case_is_as_sure_as_its_classes_are_on_average(tmp_path):
    file = tmp_path / "label"
    file.write_bytes(b"x")
    of = entry(["RV", "MYO", "LV"], [0.9, 0.5, math.nan], file)
    assert of["confidence"] == 0.7 and of["classes"] == {"RV": 0.9, "MYO": 0.5}
    assert (
        of["reason"] == "MYO is sure by 0.50 only"
        and of["sha256"] == hashlib.sha256(b"x").hexdigest()
    )
    empty = entry(["RV"], [math.nan], file)
    assert empty["confidence"] == 0 and "nothing" in empty["reason"]


ENTRY = {"kind": "pseudo", "sha256": "1f", "confidence": 0.5, "classes": {"RV": 0.5}, "reason": "x"}


@pytest.mark.parametrize(
    "cases",
    [
        5,
        ["a"],
        {"a": 5},
        {"a": {}},
        {"a": {"kind": "pseudo"}},
        {"a": {**ENTRY, "confidence": "high"}},
        {"a": {**ENTRY, "classes": {"RV": None}}},
    ],
)
def test_a_damaged_record_is_named(tmp_path, cases):
    (tmp_path / RECORD).write_text(json.dumps({"cases": cases}))
    with pytest.raises(ValueError, match=f'{tmp_path / RECORD} is damaged: "cases" does not say'):
        pseudo_labels(tmp_path, ".nii.gz")
