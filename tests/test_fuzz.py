"""Whatever stands in split, settings and plans: a clear error, or what was asked for."""

import json
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from conftest import TINY
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nnunetv2_plgcl import commands
from nnunetv2_plgcl.datasets.files import read_split
from nnunetv2_plgcl.datasets.unlabelled import unlabelled_cases
from nnunetv2_plgcl.record import as_json, differences
from nnunetv2_plgcl.settings import read_settings
from nnunetv2_plgcl.trainers import known_settings, trainer_classes

KNOWN = sorted(known_settings())
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
quick = hypothesis_settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,  # the same examples in every run
)


@quick
@given(
    trainer=st.sampled_from(sorted(trainer_classes())),
    section=st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), ANYTHING, max_size=4)
    | ANYTHING,
)
def test_settings_are_refused_by_name_or_taken_as_they_are(trainer, section):
    trainer_class = trainer_classes()[trainer]
    try:
        config = read_settings(
            trainer_class.settings_class,
            {"plgcl": section},
            trainer_class.fixed_config,
            known_settings,
        )
    except (ValueError, TypeError) as error:
        assert "plgcl" in str(error) or any(repr(key)[1:-1] in str(error) for key in section)
        return
    taken = as_json(asdict(config))
    own = {field.name for field in fields(trainer_class.settings_class)}
    asked = {key: value for key, value in section.items() if key in own}
    assert {key: taken[key] for key in asked} == as_json(asked)
    rest = {key: value for key, value in taken.items() if key not in asked}
    if "preset" not in asked:
        default = as_json(asdict(trainer_class.settings_class(**trainer_class.fixed_config)))
        assert rest == {key: default[key] for key in rest}


CASES = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=4)
FOLD = st.fixed_dictionaries({}, optional={"train": CASES, "val": CASES, "unlabelled": CASES})
SPLIT = st.lists(FOLD, max_size=3) | ANYTHING | st.lists(ANYTHING, max_size=2)


@quick
@given(
    split=SPLIT,
    fold=st.integers(0, 3) | st.just("all"),
    images_un=st.lists(st.sampled_from(["a", "b", "f"]), unique=True),
)
def test_a_split_is_refused_or_keeps_its_parts_apart(split, fold, images_un, tmp_path):
    file = Path(tmp_path) / "splits_final.json"
    file.write_text(json.dumps(split))
    try:
        splits = read_split(file)
        cases = unlabelled_cases(splits, fold, file, 1, images_un)
    except ValueError as error:
        assert str(error).strip()
        return
    assert cases and len(set(cases)) == len(cases)
    listed = splits[fold] if isinstance(fold, int) and fold < len(splits) else {}
    assert set(cases) == {*listed.get("unlabelled", []), *images_un}
    for part in ("train", "val"):
        assert not set(cases) & set(listed.get(part, []))


@quick
@given(noted=ANYTHING.map(lambda x: {"settings": x, "cases": {}}), now=ANYTHING)
def test_a_record_differs_from_every_other_and_not_from_itself(noted, now):
    noted, other = as_json(noted), as_json({"settings": now, "cases": {}})
    if "NaN" not in json.dumps(noted):
        assert differences(noted, noted) == []
    if not isinstance(now, dict) and noted["settings"] != other["settings"]:
        assert differences(noted, other)


def places(content, at=()):
    """Where something stands in JSON, from the whole to every leaf."""
    yield at
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*at, key))


@pytest.mark.parametrize("name", ["dataset.json", "nnUNetPlans.json", "splits_final.json"])
def test_whatever_stands_in_a_file_of_nnunet_a_command_ends_in_words(name, prepared, capsys):
    file = prepared.preprocessed / name
    whole = json.loads(file.read_text())
    described = {("configurations", TINY), ("configurations", "2d")}
    where = [at for at in places(whole) if at[:1] != ("configurations",) or at[:2] in described]

    @hypothesis_settings(quick, max_examples=40, phases=[Phase.generate])
    @given(at=st.sampled_from(where), value=ANYTHING, remove=st.booleans())
    def check(at, value, remove):
        changed = deepcopy(whole) if at else value
        inner = changed
        for key in at[:-1]:
            inner = inner[key]
        if at and remove:
            del inner[at[-1]]
        elif at:
            inner[at[-1]] = value
        file.write_text(json.dumps(changed))
        with pytest.raises(SystemExit) as stopped:
            commands.check(["-d", "901", "-c", TINY, "-f", "0"])
        assert "should not have happened" not in str(stopped.value.code)
        out = capsys.readouterr().out
        if stopped.value.code == 1:
            assert "error   " in out

    check()


def test_a_trainer_without_settings_has_its_defaults():
    with pytest.raises(ValueError, match="Unknown key"):
        read_settings(next(iter(trainer_classes().values())).settings_class, {"plgcl": {"": 1}})
