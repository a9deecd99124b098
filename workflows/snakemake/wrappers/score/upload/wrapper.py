"""Uploads files to a Score repository."""

from score_core.workflow.job import run
from score_core.workflow.steps import UPLOAD

run(UPLOAD, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
