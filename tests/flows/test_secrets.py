"""No secret is kept: markers and every signature of a run are searched for in all that Prefect and we write."""

import json
import os
import subprocess
import sys
import time

import pytest

from flows.download import download
from score_core.testing.faults import Fault, Flip, busy, denied, expired, part
from tests.flows.conftest import PART_BYTES, ROOT, new_id, task_runs

pytestmark = [pytest.mark.prefect, pytest.mark.slow, pytest.mark.xdist_group("flows")]

TOKEN = "planted-token-3b1f9c"
AWS_SECRET = "planted/aws+secret/7d0c2e"
LOUD = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_TO_API_ENABLED": "true",
    "PREFECT_DEBUG_MODE": "true",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "DEBUG",
    "SCORE_TOKEN": TOKEN,
    "ACCESSTOKEN": TOKEN,
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
    "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
}
FAULTS: dict[str, tuple[dict[int, Fault], int | None, int]] = {  # the fault of a part, how often, and how the flow then ends
    "mended": ({3: busy(), 5: expired()}, 2, 0),
    "denied": ({3: denied()}, None, 4),
    "damaged": ({3: Flip(at=17)}, None, 6),
}


def flows(site, *arguments):
    """A flow in a process of its own that logs all it can; its report, and what it printed."""
    command = [sys.executable, "-m", "flows", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=site.environment() | LOUD, timeout=100, check=False)
    report = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode
    return report, done.stdout + done.stderr


def secrets_of(site):
    """The planted ones, the store's signing key, the server's password, and every signature that came by."""
    key = (site.folder / "store" / ".secret").read_bytes()
    signatures = {seen.query["Signature"] for seen in site.proxy.seen if "Signature" in seen.query}
    assert len(signatures) > 4
    planted = [TOKEN, AWS_SECRET, str(site.server.auth).partition(":")[2]]
    return [key, key.hex().encode(), *(text.encode() for text in [*planted, *signatures])]


def everything_written(site):
    """All files of the Prefect server and client, results, journals and leftovers: path and bytes. Store and data are the user's own."""
    for folder in (site.server.home, site.folder / "data", site.out):
        for path in folder.rglob("*"):
            if path.is_file() and "bytecode" not in path.parts and path.suffix != ".bam" and path.name != "state.json":
                yield path, path.read_bytes()


def assert_kept_nowhere(site, printed):
    found = [
        (str(where), secret[:8])
        for where, data in [("terminal", printed), *everything_written(site)]
        for secret in secrets_of(site)
        if secret in data
    ]
    assert found == []


def test_search_finds_what_is_there(site):
    """The check itself: a secret in the server's folder is found. It is this store's own, for other tests look there too."""
    object_id, _ = site.stored(8)
    download(object_id, str(site.out))
    planted = site.server.home / "prefect" / "planted.txt"
    planted.write_text((site.folder / "store" / ".secret").read_bytes().hex())
    try:
        with pytest.raises(AssertionError, match="planted"):
            assert_kept_nowhere(site, b"")
    finally:
        planted.unlink()


@pytest.mark.parametrize("direction", ["upload", "download"])
@pytest.mark.parametrize("kind", FAULTS)
def test_nothing_secret_is_kept(site, direction, kind):
    faults, times, code = FAULTS[kind]
    if direction == "upload":
        object_id = new_id()
        arguments = ["upload", "--file", str(site.file(8)), "--object-id", object_id]
    else:
        object_id, _ = site.stored(8)
        arguments = ["download", "--object-id", object_id, "--output-dir", str(site.out)]
    for number, fault in faults.items():
        site.proxy.inject(fault, when=part(number, PART_BYTES), times=times)

    report, printed = flows(site, *arguments)

    assert report["exit_code"] == code
    if code == 0:
        (file,) = report["files"]
        assert (file["outcome"], file["retries"]) == (f"{direction}ed", 4)
    assert b"DEBUG" in printed
    assert len(task_runs(f"{direction} {object_id}", 10)) >= 10
    time.sleep(1.5)  # the server's other tables follow within a flush interval
    assert_kept_nowhere(site, printed)


def test_nothing_of_an_s3_signature_is_kept(site, seaweedfs_server):
    """Against the real S3 server: neither the secret key nor any signed query, however it was spelled."""
    path, object_id = site.folder / "big.bin", new_id()
    path.write_bytes(os.urandom(11 << 20))  # S3's parts have 5 MiB or more
    keys = {**seaweedfs_server.environment(), "SCORE_PART_SIZE_BYTES": str(5 << 20)}
    store = seaweedfs_server.store_url(seaweedfs_server.fresh_bucket())
    ways = (["upload", "--file", str(path)], ["download", "--output-dir", str(site.out)])
    lines = json.dumps([[*way, "--object-id", object_id, "--store", store, "--json"] for way in ways])
    program = "import json, sys; from flows.__main__ import main; sys.exit(sum(main(line) for line in json.loads(sys.argv[1])))"
    command = [sys.executable, "-c", program, lines]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=site.environment() | LOUD | keys, timeout=100, check=True)
    printed = done.stdout + done.stderr
    assert (site.out / "big.bin").read_bytes() == path.read_bytes()
    time.sleep(1.5)
    secrets = (seaweedfs_server.secret_key.encode(), b"X-Amz-Signature=", b"X-Amz-Credential=")
    written = [("terminal", printed), *everything_written(site)]
    assert [(str(where), secret[:16]) for where, data in written for secret in secrets if secret in data] == []
