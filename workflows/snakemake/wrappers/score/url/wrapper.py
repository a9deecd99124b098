"""Writes a time-limited address of an object."""

from score_core.workflow.job import run
from score_core.workflow.steps import URL

run(URL, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
