import json
from dataclasses import asdict

import pytest

from nnunetv2_plgcl.settings import PLGCLConfig, config_from_plans


def test_defaults_are_the_published_numbers():
    config = config_from_plans({})
    assert (config.ema_decay, config.temperature) == (0.999, 0.2)
    assert (config.memory_length, config.anchors) == (4096, 128)
    assert config.warmup_fraction == pytest.approx(1 / 3)


def test_any_subset_can_be_set_in_the_plans():
    plans = json.loads('{"batch_size": 8, "plgcl": {"temperature": 0.5, "ema_decay": 1}}')
    config = config_from_plans(plans)
    assert config == PLGCLConfig(temperature=0.5, ema_decay=1)


def test_lists_of_the_plans_file_are_taken():
    config = config_from_plans(json.loads('{"plgcl": {"feature_stages": [-1, 0]}}'))
    assert config.feature_stages == (-1, 0)
    assert config_from_plans({"plgcl": json.loads(json.dumps(asdict(config)))}) == config


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(ValueError, match="'temprature'.*Did you mean 'temperature'"):
        config_from_plans({"plgcl": {"temprature": 0.5}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.2"),
        ("anchors", 12.5),
        ("seed", True),
        ("guide", 3),
        ("ema_decay", None),
        ("seed", [1]),
        ("feature_stages", -1),
        ("feature_stages", ["-1"]),
    ],
)
def test_an_ill_typed_value_names_key_type_and_value(key, value):
    with pytest.raises(TypeError, match=f"'{key}' must be of type"):
        config_from_plans({"plgcl": {key: value}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("labelled_fraction", 1),
        ("labelled_fraction", 0.0),
        ("ema_decay", 1.01),
        ("anchors", 0),
        ("guide", "entropie"),
        ("deployed_weights", "both"),
    ],
)
def test_a_value_out_of_range_is_refused(key, value):
    with pytest.raises(ValueError, match=f"'{key}' must"):
        config_from_plans({"plgcl": {key: value}})


def test_the_plans_section_must_be_a_mapping():
    with pytest.raises(TypeError, match="'plgcl' in the plans must be a mapping"):
        config_from_plans({"plgcl": [1]})


def test_what_a_trainer_stands_for_cannot_be_contradicted_by_the_plans():
    fixed = {"warmup_fraction": 0.0}
    assert config_from_plans({}, fixed).warmup_fraction == 0.0
    assert config_from_plans({"plgcl": {"warmup_fraction": 0.0}}, fixed).warmup_fraction == 0.0
    with pytest.raises(ValueError, match="this trainer stands for 0.0"):
        config_from_plans({"plgcl": {"warmup_fraction": 0.5}}, fixed)
