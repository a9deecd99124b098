"""Prefect tasks: each is its docstring, its decorator and one call into `score_core`."""
