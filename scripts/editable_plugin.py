"""A build hook: an editable install shows Snakemake the storage plugin.

Snakemake finds plugins by `pkgutil.iter_modules()`, which lists the folders on the import path and does not ask the import hook by which an
exact editable install exposes its packages. So a plain `.pth` file names the plugin's folder, in which there is nothing else.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditablePlugin(BuildHookInterface[Any]):
    """Hatchling finds the class by its base."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the file to an editable wheel; a real one holds the plugin itself."""
        if version == "editable":
            source = Path(self.root, "workflows", "snakemake", "src")
            made = Path(self.directory, "snakemake_storage_plugin_score.pth")
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(f"{source}\n", encoding="utf-8")
            build_data["force_include_editable"][str(made)] = f"_{made.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002  # hatchling's signature
        """Leaves no file behind."""
        Path(self.directory, "snakemake_storage_plugin_score.pth").unlink(missing_ok=True)
