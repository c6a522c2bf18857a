import json

import pytest
from conftest import TINY

from nnunetv2_plgcl.datasets.description import read_dataset, read_plans


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda plans: plans.update(dataset_name="Dataset902_Other"), "cases of that dataset"),
        (
            lambda plans: plans["configurations"][TINY].update(data_identifier="../../x"),
            "is a path",
        ),
        (lambda plans: plans["configurations"][TINY].update(data_identifier="/x"), "is a path"),
        (lambda plans: plans["configurations"].update({TINY: None}), "no object with an object"),
        (lambda plans: plans.update(configurations=5), "no object with an object"),
        (lambda plans: plans["configurations"][TINY].update(batch_size="4"), "cannot read conf"),
        (lambda plans: plans.pop("configurations"), 'has no "configurations"'),
    ],
)
def test_plans_that_lead_elsewhere_or_nowhere_are_refused(prepared, change, said):
    file = prepared.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    read_plans(prepared.name, "nnUNetPlans", TINY)
    change(plans)
    file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=said) as refused:
        read_plans(prepared.name, "nnUNetPlans", TINY)
    assert str(file) in str(refused.value)


SOUND = {"file_ending": ".png", "labels": {"background": 0, "a": 1}}


def test_what_nnunet_reads_we_read(tmp_path):
    file = tmp_path / "dataset.json"
    for more in ({}, {"modality": {"0": "CT"}}, {"labels": {"background": 0, "a": ["1", "2"]}}):
        file.write_text(json.dumps({**SOUND, **more}))
        assert read_dataset(file) == {**SOUND, **more}


@pytest.mark.parametrize(
    "content, said",
    [
        ([], "holds a list"),
        ({"labels": {}}, 'has no "file_ending"'),
        ({**SOUND, "file_ending": 5}, '"file_ending"'),
        ({**SOUND, "labels": {"0": "background", "1": "a"}}, "nnU-Net v1"),
        ({**SOUND, "channel_names": []}, '"channel_names"'),
        ({**SOUND, "dataset": {"a": {"images": None}}}, '"dataset"'),
    ],
)
def test_a_damaged_dataset_json_is_told_by_file_and_key(tmp_path, content, said):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said) as refused:
        read_dataset(file)
    assert str(file) in str(refused.value)
