"""Publishes an analysis."""

from score_core.workflow.job import run
from score_core.workflow.steps import PUBLISH

run(PUBLISH, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
