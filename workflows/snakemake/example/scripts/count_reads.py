"""Counts the reads of whole files and of slices of them; writes one line per sample."""  # noqa: INP001  # a script, no package

import contextlib
from pathlib import Path

import pysam


def reads(path: str) -> int:
    """All records of a BAM file, placed or not."""
    with pysam.AlignmentFile(path, check_sq=False) as file:
        return sum(1 for _ in file.fetch(until_eof=True))


job = snakemake  # type: ignore[name-defined]  # noqa: F821  # Snakemake puts it here
with Path(job.log[0]).open("w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
    lines = ["sample\tregion\treads\treads_in_region"]
    for sample, region, whole, part in zip(job.params.samples, job.params.regions, job.input.wholes, job.input.slices, strict=True):
        lines.append(f"{sample}\t{region}\t{reads(whole)}\t{reads(part)}")
    Path(job.output[0]).write_text("\n".join(lines) + "\n", encoding="utf-8")
