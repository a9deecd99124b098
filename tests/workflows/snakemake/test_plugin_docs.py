"""What the plugin's documentation says is so."""

from __future__ import annotations

import re
from dataclasses import fields
from io import StringIO

import pytest
from snakefmt.formatter import Formatter
from snakefmt.parser.parser import Snakefile

from snakemake_storage_plugin_score import StorageProvider, StorageProviderSettings
from tests.workflows.snakemake.conftest import ROOT

DOCS = ROOT / "workflows" / "snakemake" / "docs"
TEXTS = {path.name: path.read_text() for path in (DOCS / "intro.md", DOCS / "further.md")}


def test_every_setting_is_described_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", TEXTS["further.md"], re.MULTILINE))
    assert set(rows) == {each.name for each in fields(StorageProviderSettings)}
    for each in fields(StorageProviderSettings):
        if each.default is not None:
            assert str(each.default) in rows[each.name]


@pytest.mark.parametrize("name", TEXTS)
def test_snakefiles_are_formatted(name: str) -> None:
    for code in re.findall(r"```snakemake\n(.*?)```", TEXTS[name], re.DOTALL):
        assert Formatter(Snakefile(StringIO(code))).get_formatted() == code


@pytest.mark.parametrize("name", TEXTS)
def test_whole_queries_are_valid(name: str) -> None:
    queries = re.findall(r"score://[A-Z][\w./{}?=:-]*/[\w./{}?=:&-]*\w", TEXTS[name])
    assert queries
    assert [query for query in queries if not StorageProvider.is_valid_query(query)] == []
