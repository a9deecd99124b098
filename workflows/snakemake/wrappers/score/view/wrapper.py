"""Cuts regions out of a BAM, CRAM, VCF or BCF object."""

from score_core.workflow.job import run
from score_core.workflow.steps import VIEW

run(VIEW, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
