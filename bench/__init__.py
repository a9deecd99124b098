"""Benchmarks: figures for `docs/performance.md`, never a timed test."""
