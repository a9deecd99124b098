"""Flows over a Score server by its address, with the token from a file: transfers, batches, resume after a kill, no secret kept."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from flows.batch import batch
from flows.download import download
from flows.upload import upload
from score_core.auth.embedded import EmbeddedToken
from score_core.errors import BatchError, ScoreError
from score_core.metadata.base import Analysis
from score_core.metadata.registering import download_manifest_text, new_file, register, upload_manifest_text
from score_core.metadata.registry import Registry
from score_core.operations import file_md5
from score_core.server.app import ServerParts, create_app
from score_core.server.serving import RestServer
from score_core.testing.faults import Call, is_get, is_put
from tests.flows.conftest import PART_BYTES, ROOT, Site, same, task_runs
from tests.flows.test_kill import Zygote
from tests.flows.test_secrets import everything_written

pytestmark = [pytest.mark.prefect, pytest.mark.slow, pytest.mark.xdist_group("flows")]

STUDY = "TEST-CA"
PARTS = 24
WORKERS = 4  # as the site says
LOUD = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_TO_API_ENABLED": "true",
    "PREFECT_DEBUG_MODE": "true",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "DEBUG",
}


@dataclass
class Served:
    """A server with a registry over the site's store."""

    site: Site
    url: str
    registry: Registry
    token: str

    def registered(self, *names: str, parts: float = 2.5) -> tuple[Analysis, Path]:
        """Files of so many parts, registered as one analysis; the folder that they are in."""
        folder = self.site.folder / f"files-{uuid4().hex[:8]}"
        folder.mkdir()
        for seed, name in enumerate(names):
            (folder / name).write_bytes(self.site.file(parts, "seed.bam", seed + 1).read_bytes())
        return register(self.registry, STUDY, [new_file(folder / name) for name in names], analysis_id=str(uuid4())), folder

    def publish(self, analysis: Analysis) -> None:
        self.registry.publish(STUDY, analysis.analysis_id)
        self.site.proxy.forget()


@pytest.fixture
def served(site, monkeypatch):
    """Found by flows in SCORE_URL or as their `store`; who asks needs the token, which is in a file."""
    token, repository = secrets.token_urlsafe(32), site.repository
    token_file = site.folder / "token"
    token_file.write_text(token + "\n")
    token_file.chmod(0o600)
    repository.ensure_sentinel()
    with ExitStack() as stack:
        registry = Registry(site.folder / "registry.sqlite3", repository=repository)
        stack.callback(registry.close)
        server = RestServer(create_app(ServerParts(repository, registry, registry, EmbeddedToken(token))), "127.0.0.1", 0)
        stack.callback(server.close)
        server.start()
        monkeypatch.delenv("SCORE_STORE")
        monkeypatch.setenv("SCORE_TOKEN_FILE", str(token_file))
        yield Served(site, server.url, registry, token)


def test_upload_publish_download(site, served):
    analysis, folder = served.registered("reads.bam")
    path, object_id = folder / "reads.bam", analysis.files[0].object_id

    up = upload(str(path), object_id, store=served.url)
    with pytest.raises(ScoreError, match="is not PUBLISHED"):
        download(object_id, str(site.out), store=served.url)
    served.publish(analysis)
    down = download(object_id, str(site.out), store=served.url)

    assert (up["outcome"], down["outcome"]) == ("uploaded", "downloaded")
    assert Path(down["path"]) == site.out / "reads.bam"  # the name that is registered
    assert same(site.out / "reads.bam", path)
    assert site.gets() == [1, 2, 3]


def test_other_file_than_registered_is_not_sent(site, served):
    analysis, folder = served.registered("reads.bam")
    (folder / "reads.bam").write_bytes(b"another")
    with pytest.raises(ScoreError, match="registered"):
        upload(str(folder / "reads.bam"), analysis.files[0].object_id, store=served.url)
    assert site.puts() == []


def test_batches_by_manifest_and_by_analysis(site, served):
    """An analysis comes with its index; a manifest that names one file brings its index, too."""
    analysis, folder = served.registered("a.bam", "a.bam.bai", "b.vcf.gz")
    manifest = site.folder / "upload.tsv"
    manifest.write_text(upload_manifest_text(analysis, folder))
    reports = batch(str(manifest), "upload", store=served.url)
    assert [report["outcome"] for report in reports] == ["uploaded"] * 3
    served.publish(analysis)

    batch(None, "download", str(site.out), study_id=STUDY, analysis_id=analysis.analysis_id, store=served.url)
    assert sorted(path.name for path in site.out.iterdir()) == ["a.bam", "a.bam.bai", "b.vcf.gz"]
    assert all(same(site.out / path.name, path) for path in folder.iterdir())

    rows = download_manifest_text(analysis).splitlines(keepends=True)
    manifest.write_text(rows[0] + next(row for row in rows if "\ta.bam\t" in row))
    other = site.folder / "other"
    batch(str(manifest), "download", str(other), store=served.url, output_layout="bundle", large_bytes=1)
    assert sorted(str(path.relative_to(other)) for path in other.rglob("*.ba*")) == [
        f"{analysis.analysis_id}/a.bam",
        f"{analysis.analysis_id}/a.bam.bai",
    ]


def test_batch_of_an_unpublished_analysis_says_so_for_each_file(site, served):
    analysis, folder = served.registered("a.bam", "b.bam", parts=1)
    manifest = site.folder / "upload.tsv"
    manifest.write_text(upload_manifest_text(analysis, folder))
    batch(str(manifest), "upload", store=served.url)
    with pytest.raises(BatchError) as caught:
        batch(None, "download", str(site.out), study_id=STUDY, analysis_id=analysis.analysis_id, store=served.url)
    assert all("is not PUBLISHED" in str(report.error) for report in caught.value.reports)


@pytest.mark.kill
def test_killed_flows_go_on(site, served, monkeypatch):
    """As the demo does it: half-way the process is gone; the next one moves what is missing, and Prefect had the rest."""
    monkeypatch.setenv("SCORE_URL", served.url)
    zygote = Zygote(site)
    try:
        analysis, folder = served.registered("reads.bam", parts=PARTS)
        path, object_id = folder / "reads.bam", analysis.files[0].object_id
        kill_half_way(site, zygote, "upload", path=str(path), object_id=object_id, md5=file_md5(path))
        zygote.run("upload", path=str(path), object_id=object_id, md5=file_md5(path))
        assert_few_twice(site.puts())
        served.publish(analysis)

        kill_half_way(site, zygote, "download", object_id=object_id, output_dir=str(site.out))
        zygote.run("download", object_id=object_id, output_dir=str(site.out))
        assert_few_twice(site.gets())
        assert same(site.out / "reads.bam", path)
        assert site.cached_results() == []
    finally:
        zygote.close()


def kill_half_way(site, zygote, flow, **arguments):
    site.proxy.forget()
    site.proxy.inject(Call(lambda: time.sleep(0.02)))
    pid = zygote.start(flow, **arguments)
    site.proxy.at_byte(PARTS * PART_BYTES // 2, lambda: os.kill(pid, signal.SIGKILL))
    assert zygote.wait() == signal.SIGKILL
    site.proxy.heal()
    assert site.proxy.wait_until_left(10)
    assert 0 < len(site.puts() + site.gets()) < PARTS


def assert_few_twice(moved):
    times = Counter(moved)
    assert set(times) == set(range(1, PARTS + 1))
    assert len(moved) <= PARTS + WORKERS


def test_no_token_and_no_url_is_kept(site, served):
    """Neither in Prefect's database, nor in its logs, results and terminal, at the loudest."""
    analysis, folder = served.registered("reads.bam", parts=8)
    object_id = analysis.files[0].object_id
    printed = run_flow(site, "upload", "--file", str(folder / "reads.bam"), "--object-id", object_id, "--store", served.url)
    served_puts = {seen.query["Signature"] for seen in site.proxy.moves() if is_put(seen)}
    served.publish(analysis)
    printed += run_flow(site, "download", "--object-id", object_id, "--output-dir", str(site.out), "--store", served.url)
    signatures = served_puts | {seen.query["Signature"] for seen in site.proxy.moves() if is_get(seen)}
    assert len(signatures) >= 9
    assert len(task_runs(f"download {object_id}", 8)) >= 8
    time.sleep(1.5)  # the server's other tables follow within a flush interval

    kept = [served.token.encode(), *(signature.encode() for signature in signatures), b"Signature="]
    written = [("terminal", printed), *everything_written(site)]
    assert b"DEBUG" in printed
    assert [(str(where), secret[:6]) for where, data in written for secret in kept if secret in data] == []


def run_flow(site, *arguments):
    """A flow in a process of its own that logs all it can; what it printed."""
    command = [sys.executable, "-m", "flows", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=site.environment() | LOUD, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
