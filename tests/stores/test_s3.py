import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qsl, urlsplit

import boto3
import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from score_core.checksum import md5_base64, md5_hex
from score_core.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    ObjectNotFound,
    ScoreError,
    ServiceError,
    Unavailable,
)
from score_core.model import ByteRange, Part
from score_core.stores.base import ListedPart
from score_core.stores.s3 import S3Store
from score_core.testing.servers import S3Endpoint, free_ports
from score_core.testing.stores import ObjectStoreContract, SignedUrlContract

MIB = 1024 * 1024
SECRET = "hunter2-secret-key"
MD5 = md5_hex(b"x")


class S3Suite(ObjectStoreContract, SignedUrlContract):
    min_part_bytes = 5 * MIB  # S3's least size of a part that is not the last
    differs: ClassVar[dict[str, str]] = {}  # tests that this server cannot pass, and why

    @pytest.fixture(autouse=True)
    def _skip_where_the_server_differs(self, request):
        name = request.node.originalname
        if name in self.differs:
            pytest.skip(self.differs[name])

    @pytest.fixture
    def endpoint(self):
        raise NotImplementedError

    @pytest.fixture
    def store(self, endpoint, s3_store_factory):
        store = s3_store_factory(endpoint)
        with contextlib.closing(endpoint.client()) as self.client:
            yield store

    def raw_write(self, store, key, data):
        self.client.put_object(Bucket=store._bucket, Key=store._full(key), Body=data)

    def raw_read(self, store, key):
        return self.client.get_object(Bucket=store._bucket, Key=store._full(key))["Body"].read()


@pytest.mark.s3
class TestSeaweed(S3Suite):
    differs: ClassVar[dict[str, str]] = {
        "test_part_sent_again_replaces": "SeaweedFS 4.48 keeps every version of a part and publishes the one whose ETag is given",
    }

    @pytest.fixture
    def endpoint(self, seaweedfs_server):
        return seaweedfs_server


@pytest.mark.s3
class TestMoto(S3Suite):
    differs: ClassVar[dict[str, str]] = {
        "test_part_of_aborted_upload_is_not_found": "moto 5.2 answers 500",
        "test_same_part_sent_by_many_is_whole": "moto 5.2 answers 500 when several threads send one part",
        "test_uploads_are_listed_until_finished": "moto 5.2 says that every upload began in 2010",
    }
    verifies_signatures = False
    checks_content_md5 = False

    @pytest.fixture
    def endpoint(self, moto_server):
        return moto_server

    def test_every_page_of_parts_is_listed(self, store):
        """F36: 2,500 parts come in three pages."""
        upload_id = store.create_multipart("data/a")
        for number in range(1, 2501):  # behind the server's back: over HTTP it takes 16 s
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].upload_part(store._bucket, upload_id, number, b"x")
        assert list(store.list_parts("data/a", upload_id)) == [ListedPart(number, 1, MD5) for number in range(1, 2501)]
        store.abort_multipart("data/a", upload_id)

    def test_every_page_of_objects_is_listed(self, store):
        keys = [f"data/{number:04d}" for number in range(1001)]
        for key in keys:
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(store._bucket, store._full(key), b"")
        assert [row.key for row in store.list_objects("data/")] == keys

    def test_small_part_is_a_clear_error(self, store):
        upload_id = store.create_multipart("data/a")
        parts = [
            ListedPart(number, 5, self.send(store.presign_part("data/a", upload_id, Part(number, 0, 5), lifetime_s=60), b"small"))
            for number in (1, 2)
        ]
        with pytest.raises(ServiceError, match="smaller than the store's minimum"):
            store.complete_multipart("data/a", upload_id, parts)

    @pytest.mark.parametrize("metadata", [md5_base64(MD5), MD5.upper()])
    def test_head_knows_the_recorded_md5(self, store, metadata):
        self.client.put_object(Bucket=store._bucket, Key=store._full("a"), Body=b"y", Metadata={"md5chksum": metadata})
        del metadata
        assert store.head("a").md5 == MD5

    def test_missing_bucket_is_named(self, endpoint):
        store = endpoint.store("no-such-bucket")
        calls = (
            store.check,
            lambda: store.read("a"),
            lambda: store.write("a", b""),
            lambda: list(store.list_objects("")),
            lambda: store.create_multipart("a"),
            lambda: store.delete("a"),
        )
        for call in calls:
            with pytest.raises(ObjectNotFound, match="bucket no-such-bucket does not exist"):
                call()
        store.close()


# URLs, without a server


@pytest.fixture(scope="module")
def session():
    return boto3.Session(aws_access_key_id="AKIAEXAMPLE", aws_secret_access_key=SECRET, region_name="eu-west-1")


@pytest.fixture
def store(session):
    with contextlib.closing(S3Store("bucket", prefix="/p/", endpoint="http://127.0.0.1:1", session=session, retries=0)) as store:
        yield store


def query_of(signed):
    return dict(parse_qsl(urlsplit(signed.url).query))


def test_range_is_signed(store):
    signed = store.presign_get("a", ByteRange(0, 10), lifetime_s=900)
    assert query_of(signed)["X-Amz-SignedHeaders"] == "host;range"
    assert query_of(signed)["X-Amz-Expires"] == "900"


def test_content_md5_is_in_the_signed_headers(store):
    signed = store.presign_part("a", "u~1", Part(3, 0, 1), lifetime_s=900, content_md5=MD5)
    query = query_of(signed)
    assert query["X-Amz-SignedHeaders"] == "content-md5;host"
    assert (query["uploadId"], query["partNumber"]) == ("u~1", "3")
    assert dict(signed.headers) == {"Content-MD5": md5_base64(MD5)}


def test_urls_equal_boto3s(store):
    """The signer is botocore's; this checks what we feed it, key by key, against `generate_presigned_url`."""
    for key in ("a", "data/with space+plus%&=~'()*!é", 'upload/part-00000001|{"a":"b"}'):
        ours = store.presign_get(key, ByteRange(0, 10), lifetime_s=900).url
        theirs = store._client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "p/" + key, "Range": "bytes=0-9"}, 900)
        assert _without_time(ours) == _without_time(theirs)
        ours = store.presign_part(key, "u+/=", Part(3, 0, 1), lifetime_s=900).url
        theirs = store._client.generate_presigned_url(
            "upload_part", {"Bucket": "bucket", "Key": "p/" + key, "UploadId": "u+/=", "PartNumber": 3}, 900
        )
        assert _without_time(ours) == _without_time(theirs)


def _without_time(url):
    parts = urlsplit(url)
    return parts[:3], {name: value for name, value in parse_qsl(parts.query) if name not in ("X-Amz-Date", "X-Amz-Signature")}


def test_aws_urls_use_the_regions_host(session):
    store = S3Store("bucket", session=session)
    assert urlsplit(store.presign_get("a", None, lifetime_s=60).url)[:3] == ("https", "bucket.s3.eu-west-1.amazonaws.com", "/a")
    store.close()


def test_session_token_is_in_the_url():
    session = boto3.Session("AKIA", SECRET, "the-token", "us-east-1")
    store = S3Store("bucket", endpoint="http://127.0.0.1:1", session=session)
    assert query_of(store.presign_get("a", None, lifetime_s=60))["X-Amz-Security-Token"] == "the-token"
    store.close()


@pytest.mark.parametrize("lifetime_s", [0, -1, 604_801])
def test_lifetime_is_limited_to_seven_days(store, lifetime_s):
    with pytest.raises(ConfigurationError, match="7 days"):
        store.presign_get("a", None, lifetime_s=lifetime_s)


def test_many_threads_sign(store):
    with ThreadPoolExecutor(8) as pool:
        urls = list(pool.map(lambda number: store.presign_get(f"{number}", None, lifetime_s=60), range(200)))
    assert [urlsplit(signed.url).path for signed in urls] == [f"/bucket/p/{number}" for number in range(200)]


# Errors


LISTED = f"<ListPartsResult><Part><PartNumber>1</PartNumber><ETag>{MD5}</ETag><Size>1</Size></Part></ListPartsResult>".encode()


class CannedS3(ThreadingHTTPServer):
    """Lists one part, and answers every other request with one status and body. Counts those."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, status, body=b"", headers=None):
        super().__init__(("127.0.0.1", 0), _CannedHandler)
        self.answer = (status, body, headers or {})
        self.requests = 0


class _CannedHandler(BaseHTTPRequestHandler):
    server: CannedS3

    def _answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "GET" and "uploadId=" in self.path:
            self._send(200, LISTED, {})
        else:
            self.server.requests += 1
            self._send(*self.server.answer)

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def canned(status, code="", *, message="no", headers=None, retries=0):
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode() if code else b""
    server = CannedS3(status, body, headers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = S3Endpoint(f"http://127.0.0.1:{server.server_port}", "AKIA", SECRET)
    store = S3Store("bucket", endpoint=endpoint.url, session=endpoint.session(), retries=retries)
    try:
        yield store, server
    finally:
        store.close()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "expected", "words"),
    [
        (404, "NoSuchKey", ObjectNotFound, "not there"),
        (404, "NoSuchUpload", ObjectNotFound, "not there"),
        (404, "NoSuchBucket", ObjectNotFound, "bucket bucket does not exist"),
        (404, "", ObjectNotFound, "not there"),
        (401, "Whatever", AuthenticationError, "AWS_"),
        (403, "InvalidAccessKeyId", AuthenticationError, "AWS_"),
        (403, "SignatureDoesNotMatch", AuthenticationError, "AWS_"),
        (400, "ExpiredToken", AuthenticationError, "AWS_"),
        (403, "RequestTimeTooSkewed", AuthenticationError, "clock"),
        (403, "AccessDenied", AccessDenied, "permission"),
        (403, "", AccessDenied, "permission"),
        (400, "InvalidPart", Conflict, "list its parts"),
        (400, "InvalidPartOrder", Conflict, "list its parts"),
        (400, "EntityTooSmall", ServiceError, "5 MiB"),
        (400, "Odd", ServiceError, "refuses it"),
        (500, "InternalError", Unavailable, "try again later"),
        (502, "", Unavailable, "try again later"),
        (503, "SlowDown", Unavailable, "try again later"),
        (200, "InternalError", Unavailable, "try again later"),  # F33: CompleteMultipartUpload fails inside a 200
    ],
)
def test_answers_become_our_errors(status, code, expected, words):
    with canned(status, code) as (store, _), pytest.raises(expected, match=words) as caught:
        store.complete_multipart("data/a", "upload", [ListedPart(1, 1, MD5)])
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)


def test_head_without_body_is_understood():
    for status, expected in ((404, ObjectNotFound), (403, AccessDenied), (401, AuthenticationError), (503, Unavailable)):
        with canned(status) as (store, _), pytest.raises(expected):
            store.head("data/a")


def test_failure_inside_a_200_is_tried_again():
    with canned(200, "InternalError", retries=2) as (store, server):
        with pytest.raises(Unavailable):
            store.complete_multipart("data/a", "upload", [ListedPart(1, 1, MD5)])
        assert server.requests == 3


def test_empty_200_confirms_nothing():
    with canned(200) as (store, _), pytest.raises(Unavailable):
        store.complete_multipart("data/a", "upload", [ListedPart(1, 1, MD5)])


def test_other_region_is_named():
    moved = canned(301, "PermanentRedirect", headers={"x-amz-bucket-region": "ap-south-1"})
    with moved as (store, _), pytest.raises(ServiceError, match="region=ap-south-1"):
        store.read("a")


def test_unreachable_store_is_unavailable():
    (port,) = free_ports(1)
    endpoint = S3Endpoint(f"http://127.0.0.1:{port}", "AKIA", SECRET)
    store = S3Store("bucket", endpoint=endpoint.url, session=endpoint.session(), retries=0)
    calls = (store.check, lambda: store.head("a"), lambda: list(store.list_parts("a", "u")), lambda: store.abort_multipart("a", "u"))
    for call in calls:
        with pytest.raises(Unavailable, match=f"http://127.0.0.1:{port} is not reached"):
            call()
    store.close()


def test_silent_store_is_unavailable(monkeypatch):
    monkeypatch.setattr("score_core.stores.s3._READ_TIMEOUT_S", 0.2)
    with canned(200, headers={"Content-Length": "10"}) as (store, _), pytest.raises(Unavailable):
        store.read("a")


def test_no_credentials_says_what_to_set(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = S3Store("bucket", endpoint="http://127.0.0.1:1", retries=0)
    for call in (store.check, lambda: store.presign_get("a", None, lifetime_s=60)):
        with pytest.raises(AuthenticationError, match="s3://bucket: set AWS_ACCESS_KEY_ID .* or AWS_PROFILE"):
            call()
    store.close()


def test_unknown_profile_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match="AWS_PROFILE"):
        S3Store("bucket")


def test_malformed_endpoint_is_a_configuration_error(session):
    with pytest.raises(ConfigurationError, match="http://host:9000"):
        S3Store("bucket", endpoint="not a url", session=session)


@pytest.mark.parametrize(("status", "code"), [(403, "SignatureDoesNotMatch"), (403, "AccessDenied"), (400, "Odd"), (503, "SlowDown")])
def test_errors_and_logs_hold_no_secret(status, code, caplog):
    caplog.set_level(logging.DEBUG, "score_core")
    message = f"secret_key={SECRET} see http://host/a?X-Amz-Signature={SECRET}"
    with canned(status, code, message=message) as (store, _), pytest.raises(ScoreError) as caught:
        store.read("data/a")
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("score_core"))
    assert SECRET not in repr(S3Endpoint("http://h", "a", SECRET))
