import json
from dataclasses import asdict
from typing import ClassVar

import pytest

from nnunetv2_plgcl.settings import left_aside, names_of, read_settings
from nnunetv2_plgcl.trainers import known_settings, trainer_classes
from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import MeanTeacherSettings
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import PLGCLSettings
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import PosterSettings


def read(configuration, fixed=None):
    return read_settings(PLGCLSettings, configuration, fixed, known_settings)


def test_defaults_are_the_published_numbers():
    config = read_settings(PosterSettings, {})
    assert (config.ema_decay, config.temperature) == (0.999, 0.2)
    assert (config.memory_length, config.anchors) == (4096, 128)
    assert config.warmup_fraction == pytest.approx(1 / 3)


def test_any_subset_can_be_set_in_the_plans():
    plans = json.loads('{"batch_size": 8, "plgcl": {"temperature": 0.5, "ema_decay": 1}}')
    config = read(plans)
    assert config == PLGCLSettings(temperature=0.5, ema_decay=1)


def test_lists_of_the_plans_file_are_taken():
    config = read(json.loads('{"plgcl": {"feature_stages": [-1, 0]}}'))
    assert config.feature_stages == (-1, 0)
    assert read({"plgcl": json.loads(json.dumps(asdict(config)))}) == config


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(ValueError, match="'temprature'.*Did you mean 'temperature'"):
        read({"plgcl": {"temprature": 0.5}})


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
        read({"plgcl": {key: value}})


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
        read({"plgcl": {key: value}})


def test_the_plans_section_must_be_a_mapping():
    with pytest.raises(TypeError, match="'plgcl' in the plans must be a mapping"):
        read({"plgcl": [1]})


def test_what_a_trainer_stands_for_cannot_be_contradicted_by_the_plans():
    fixed = {"warmup_fraction": 0.0}
    assert read({}, fixed).warmup_fraction == 0.0
    assert read({"plgcl": {"warmup_fraction": 0.0}}, fixed).warmup_fraction == 0.0
    with pytest.raises(ValueError, match="this trainer stands for 0.0"):
        read({"plgcl": {"warmup_fraction": 0.5}}, fixed)


def test_a_key_of_another_trainer_is_left_aside():
    plans = {"plgcl": {"temperature": 0.5, "ema_decay": 0.9}}
    settings = read_settings(MeanTeacherSettings, plans, None, known_settings)
    assert settings == MeanTeacherSettings(ema_decay=0.9)
    assert left_aside(MeanTeacherSettings, plans) == ["temperature"]
    assert left_aside(PLGCLSettings, plans) == []


def test_a_key_that_no_trainer_knows_is_refused_by_every_trainer():
    for trainer in trainer_classes().values():
        with pytest.raises(ValueError, match="'temprature'.*Did you mean 'temperature'"):
            read_settings(
                trainer.settings_class, {"plgcl": {"temprature": 1}}, None, known_settings
            )


def test_every_setting_is_documented_with_its_source():
    for trainer in trainer_classes().values():
        assert trainer.settings_class().preset == "ours"
        for name in names_of(trainer.settings_class):
            doc = trainer.settings_class.__dataclass_fields__[name].metadata["doc"]
            assert name == "preset" or doc.endswith("]"), f"{name} names no source"


def test_single_keys_win_over_the_published_preset():
    class Published(MeanTeacherSettings):
        published: ClassVar = {"ema_decay": 0.99, "consistency_weight": 0.1}

    plans = {"plgcl": {"preset": "published", "ema_decay": 0.5}}
    settings = read_settings(Published, plans)
    assert (settings.ema_decay, settings.consistency_weight) == (0.5, 0.1)
    assert read_settings(Published, {}) == Published()
