"""Snakemake's door to Score: `score://` queries as inputs and outputs of rules.

Snakemake imports every installed plugin for every command, so nothing heavy is loaded here; a provider that is used loads it. Nor may the
import fail under a Snakemake 8, for then no command of that works any more: what only newer interfaces have is not imported here.
"""

from snakemake_storage_plugin_score._settings import StorageProviderSettings
from snakemake_storage_plugin_score._storage import StorageObject, StorageProvider

__all__ = ["StorageObject", "StorageProvider", "StorageProviderSettings"]
