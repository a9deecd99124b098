"""Writes the manifest to download an analysis by."""

from score_core.workflow.job import run
from score_core.workflow.steps import MANIFEST

run(MANIFEST, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
