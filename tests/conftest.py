"""Fixtures for all tests: real and simulated S3 servers come from the shipped plugin."""

pytest_plugins = ["score_core.testing.pytest_plugin"]
