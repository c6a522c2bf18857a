import json
from dataclasses import fields
from pathlib import Path

from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import PLGCLSettings

README = (Path(__file__).parents[1] / "README.md").read_text()
SETTINGS = README[README.index("### Settings") : README.index("### Stop and go on")]


def test_the_settings_table_names_every_setting_with_its_default():
    rows = [line.split("|")[1:4] for line in SETTINGS.splitlines() if line.startswith("| `")]
    cells = [[cell.strip(" `") for cell in row] for row in rows]
    table = {name: (default, meaning) for name, default, meaning in cells}
    for parameter in fields(PLGCLSettings):
        default = parameter.default
        shown = f"{default:.2f}" if default == 1 / 3 else str(default)
        shown = json.dumps(default) if isinstance(default, tuple) else shown
        assert table.pop(parameter.name) == (shown, parameter.metadata["doc"])
    assert not table, "settings that do not exist"
