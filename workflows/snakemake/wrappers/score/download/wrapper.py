"""Downloads objects of a Score repository."""

from score_core.workflow.job import run
from score_core.workflow.steps import DOWNLOAD

run(DOWNLOAD, snakemake)  # type: ignore[name-defined]  # Snakemake puts it here
