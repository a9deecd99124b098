"""What every storage plugin promises: the interface's own tests, and Snakemake's workflows with the plugin as default storage."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from snakemake.common.tests import TestWorkflowsBase
from snakemake.executors import local
from snakemake_interface_common.plugin_registry.plugin import TaggedSettings
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase
from snakemake_interface_storage_plugins.tests import TestStorageBase

from snakemake_storage_plugin_score import StorageProvider, StorageProviderSettings
from tests.workflows.snakemake.conftest import STUDY, TOKEN, Site

CONTENT = b"test"  # what the interface's test stores


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Site:
    """The server of a test class: over a folder, or over a real S3 server."""
    made: Site = request.getfixturevalue(request.cls.site_fixture)
    return made


def settings_for(site: Site, **more: Any) -> StorageProviderSettings:
    return StorageProviderSettings(url=site.url, metadata_url=site.url, token=TOKEN, **more)


class PluginTests(TestStorageBase):
    """The interface's four tests. A query is that of a new file of an unpublished analysis, which is stored and read again."""

    site_fixture = "site"
    registers = False
    site: Site

    @pytest.fixture(autouse=True)
    def _use(self, place: Site) -> None:
        self.site = place

    def get_storage_provider_cls(self) -> type[StorageProvider]:
        return StorageProvider

    def get_storage_provider_settings(self) -> StorageProviderSettings:
        return settings_for(self.site, register=self.registers)

    def get_query(self, tmp_path: Path) -> str:
        return f"score://{STUDY}/{tmp_path.name}-{uuid.uuid4()}/test.txt"

    def get_query_not_existing(self, tmp_path: Path) -> str:
        return f"score://{STUDY}/{uuid.uuid4()}/test.txt"


class TestNamedFiles(PluginTests):
    """Registered, stored and published by the plugin."""

    __test__ = True
    registers = True


class TestNamedFilesOnS3(TestNamedFiles):
    site_fixture = "s3_site"
    pytestmark = pytest.mark.s3


class TestFilesOfAnAnalysis(PluginTests):
    """Stored in an analysis that lists them; the server hands them out once that is published."""

    __test__ = True
    store_only = True

    def get_query(self, tmp_path: Path) -> str:
        analysis = self.site.add({"test.txt": CONTENT}, publishes=False, stores=False, analysis_id=str(uuid.uuid4()))
        return f"score://{STUDY}/{analysis.analysis_id}/test.txt"


class TestPublishedFiles(PluginTests):
    __test__ = True
    retrieve_only = True

    def get_query(self, tmp_path: Path) -> str:
        return f"score://{STUDY}/{self.site.add({'a.txt': CONTENT}).analysis_id}/a.txt"


class TestObjects(TestPublishedFiles):
    """By object id."""

    def get_query(self, tmp_path: Path) -> str:
        return f"score://{self.site.add({'a.txt': CONTENT}).files[0].object_id}/b.txt"

    def get_query_not_existing(self, tmp_path: Path) -> str:
        return f"score://{uuid.uuid4()}/b.txt"


class TestWorkflows(TestWorkflowsBase):  # type: ignore[misc]  # Snakemake is not typed
    """Snakemake's two workflows, with all their files in Score."""

    __test__ = True
    site_fixture = "site"

    @pytest.fixture(autouse=True)
    def _use(self, place: Site) -> None:
        self._site = place
        ExecutorPluginRegistry().register_plugin("local", local)

    def get_executor(self) -> str:
        return "local"

    def get_executor_settings(self) -> ExecutorSettingsBase | None:
        return None

    def get_default_storage_provider(self) -> str:
        return "score"

    def get_default_storage_prefix(self) -> str:
        return f"score://{STUDY}/run-{uuid.uuid4()}"

    def get_default_storage_provider_settings(self) -> Mapping[str, TaggedSettings]:
        tagged = TaggedSettings()
        tagged.register_settings(settings_for(self._site, register=True))
        return {"score": tagged}


class TestWorkflowsOnS3(TestWorkflows):
    site_fixture = "s3_site"
    pytestmark = pytest.mark.s3
