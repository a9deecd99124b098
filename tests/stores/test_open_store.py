import subprocess
import sys

import pytest

from score_core.errors import ConfigurationError
from score_core.stores import S3Options, open_store
from score_core.stores.base import MultipartStore
from score_core.testing.stores import get_url


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
        ("s3://bucket/with%20space", "s3://bucket/with space"),
        ("s3://bucket?endpoint=http://127.0.0.1:9000", "s3://bucket"),
        ("s3://bucket/p?endpoint=https%3A%2F%2Fs3.example.org&region=eu-west-1", "s3://bucket/p"),
    ],
)
def test_s3_addresses_open(url, label):
    store = open_store(url)
    assert isinstance(store, MultipartStore)
    assert store.label == label
    store.close()


def test_endpoint_and_region_arrive(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = open_store("s3://bucket/p?endpoint=http://127.0.0.1:9000&region=eu-west-1")
    url = get_url(store, "a").url
    assert url.startswith("http://127.0.0.1:9000/bucket/p/a?")
    assert "eu-west-1" in url
    store.close()


@pytest.mark.parametrize("options", [S3Options(), S3Options(public_endpoint="http://other")])
def test_public_endpoint_of_the_address_counts(monkeypatch, options):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = open_store("s3://bucket/p?endpoint=http://minio:9000&public_endpoint=https://data.example.org", options=options)
    assert get_url(store, "a").url.startswith("https://data.example.org/bucket/p/a?")
    store.close()


def test_folder_that_shall_encrypt_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="encryption"):
        open_store(f"file://{tmp_path}", options=S3Options(kms_key_id="key"))


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}"])
def test_folders_open_and_nothing_is_made(tmp_path, form):
    store = open_store(form.format(tmp_path / "new"))
    assert store.label == f"file://{tmp_path}/new"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "/some/folder",
        "gs://bucket",
        "http://host/bucket",
        "file://relative/folder",
        "file:relative",
        "file:///",
        "file:///a/../b",
        "file:///a%2f..%2fb",
        "file:///a?b=c",
        "s3://",
        "s3:///key",
        "s3://bu cket",
        "s3://bucket#x",
        "s3://bucket?endpoint=127.0.0.1:9000",
        "s3://bucket?endpoint=ftp://host",
        "s3://bucket?endpoint=http://",
        "s3://bucket?endpoint=http://host:99999",
        "s3://bucket?endpoint=http://host/path",
        "s3://bucket?endpoint=http://host&endpoint=http://other",
        "s3://bucket?public_endpoint=host",
        "s3://bucket?region=",
        "s3://bucket?region=a/b",
        "s3://bucket?endpont=http://host",
        "s3://[bad",
    ],
)
def test_other_addresses_are_refused_with_the_forms(url):
    with pytest.raises(ConfigurationError, match=r"s3://bucket/prefix .* file:///absolute/folder|must look like http://host:9000"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket",
        "s3://bucket?endpoint=http://me:hunter2@host:9000",
        "s3://bucket?secret_key=hunter2",
        "gs://me:hunter2@bucket",
    ],
)
def test_credentials_in_addresses_are_refused_unseen(url):
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_folder_store_loads_no_boto3(tmp_path):
    code = f"""
import sys
from score_core.stores import S3Options, open_store
open_store("file://{tmp_path}/x").write("a", b"1")
assert not {{"boto3", "botocore", "urllib3", "http.server"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
