"""Snakemake's door to Score: `score://` queries as inputs and outputs of rules.

Snakemake imports every installed plugin for every command, so nothing heavy is loaded here; a provider that is used loads it.
"""

from snakemake_storage_plugin_score._settings import StorageProviderSettings
from snakemake_storage_plugin_score._storage import StorageObject, StorageProvider

__all__ = ["StorageObject", "StorageProvider", "StorageProviderSettings"]
