"""Prefect flows: upload, download, batch. Run them with `python -m flows ...` or as deployments (`prefect.yaml`)."""
