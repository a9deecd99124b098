"""Submits a Song payload."""

from score_core.workflow.job import run
from score_core.workflow.steps import SUBMIT

run(SUBMIT, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
