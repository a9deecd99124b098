"""Registers files as an analysis."""

from score_core.workflow.job import run
from score_core.workflow.steps import REGISTER

run(REGISTER, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
