"""What reftrace and nf-core say of a folder of Nextflow files, as JSON on stdout. Runs in the environment that `tools` makes, not in ours.

Usage: python lint_program.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import reftrace  # type: ignore[import-not-found]
from nf_core.components.nfcore_component import NFCoreComponent  # type: ignore[import-not-found]
from nf_core.modules.lint.main_nf import main_nf  # type: ignore[import-not-found]
from nf_core.modules.lint.meta_yml import obtain_inputs, obtain_outputs, obtain_topics  # type: ignore[import-not-found]
from nf_core.modules.lint.module_tests import module_tests  # type: ignore[import-not-found]

REGISTRIES = ("quay.io", "community.wave.seqera.io/library")  # nf-core's default


def parsed(path: Path) -> dict[str, Any]:
    """A file as reftrace reads it."""
    found = reftrace.Module.from_file(str(path))
    if isinstance(found, reftrace.ParseError):
        return {"error": found.error}
    return {
        "processes": [
            {"name": process.name, "labels": [label.value for label in process.labels], "containers": len(process.containers)}
            for process in found.processes
        ],
        "workflows": [workflow.name for workflow in found.workflows],
    }


def linted(root: Path, folder: Path) -> dict[str, Any]:
    """A module as nf-core's own checks see it, and what it has found in main.nf and meta.yml."""
    module = NFCoreComponent("/".join(folder.parts[-2:]), None, folder, "modules", root, "modules")
    main_nf(None, module, False, REGISTRIES, None)  # noqa: FBT003  # nf-core's signature
    module_tests(None, module)
    module.get_inputs_from_main_nf()
    module.get_outputs_from_main_nf()
    module.get_topics_from_main_nf()
    meta = module.load_meta_yml()
    return {
        "passed": [check[1] for check in module.passed],
        "warned": [[check[1], check[2]] for check in module.warned],
        "failed": [[check[1], check[2]] for check in module.failed],
        "main_nf": [obtain_inputs(None, module.inputs), obtain_outputs(None, module.outputs), obtain_topics(None, module.topics)],
        "meta_yml": [obtain_inputs(None, meta["input"]), obtain_outputs(None, meta["output"]), obtain_topics(None, meta["topics"])],
    }


def main() -> None:
    root = Path(sys.argv[1])
    files = {str(path.relative_to(root)): parsed(path) for path in sorted(root.rglob("*.nf"))}
    folders = [path.parent for path in sorted((root / "modules").rglob("main.nf"))]
    modules = {str(folder.relative_to(root)): linted(root, folder) for folder in folders}
    json.dump({"files": files, "modules": modules}, sys.stdout)


if __name__ == "__main__":
    main()
