"""Build hook: an editable install takes the trainers from the checkout, so it copies none."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableWithoutCopies(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"] = {
                f"{self.root}/{source}": target
                for source, target in self.build_config.target_config["force-include"].items()
                if source != "trainers"
            }
