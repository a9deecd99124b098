import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qsl, urlsplit

import boto3
import pytest
from botocore.credentials import ReadOnlyCredentials
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
from score_core.stores import S3Options
from score_core.stores.base import ListedPart
from score_core.stores.s3 import S3Store
from score_core.testing.servers import S3Endpoint, free_ports
from score_core.testing.stores import ObjectStoreContract, SignedUrlContract, get_url, put_url, request

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
        "test_part_is_found_by_number_and_etag": "moto 5.2 takes the part number marker for a count of parts",
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
        parts = [ListedPart(number, 5, self.send(put_url(store, "data/a", upload_id, Part(number, 0, 5)), b"small")) for number in (1, 2)]
        with pytest.raises(ServiceError, match="smaller than the store's minimum"):
            store.complete_multipart("data/a", upload_id, parts)

    def test_partition_is_the_numbered_bucket(self, store, endpoint):
        partition = store.partition(17)
        assert partition.label == store.label.replace(store._bucket, f"{store._bucket}.17")
        with pytest.raises(ObjectNotFound, match=r"\.17 does not exist"):
            partition.check()
        self.client.create_bucket(Bucket=partition._bucket)
        self.publish(partition, "data/a", b"there")
        assert [list(where.list_objects("data/")) == [] for where in (store, partition)] == [True, False]
        assert self.fetch(get_url(partition, "data/a"), None) == b"there"

    def test_parts_are_encrypted_by_the_named_key(self, endpoint):
        with contextlib.closing(endpoint.session().client("kms", endpoint_url=endpoint.url)) as kms:
            key_id = kms.create_key()["KeyMetadata"]["KeyId"]
        bucket = endpoint.fresh_bucket()
        options = S3Options(kms_key_id=key_id)
        with contextlib.closing(S3Store(bucket, endpoint=endpoint.url, session=endpoint.session(), options=options)) as store:
            self.publish(store, "data/a", b"bytes")
        with contextlib.closing(endpoint.client()) as client:
            head = client.head_object(Bucket=bucket, Key="data/a")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key_id)

    def test_head_reads_the_property_that_is_set(self, endpoint):
        bucket = endpoint.fresh_bucket()
        with contextlib.closing(endpoint.client()) as client:
            client.put_object(Bucket=bucket, Key="a", Body=b"y", Metadata={"My-MD5": md5_base64(MD5), "md5chksum": "other"})
        options = S3Options(md5_property="My-MD5")
        with contextlib.closing(S3Store(bucket, endpoint=endpoint.url, session=endpoint.session(), options=options)) as store:
            assert store.head("a").md5 == MD5

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
    signed = get_url(store, "a", ByteRange(0, 10), lifetime_s=900)
    assert query_of(signed)["X-Amz-SignedHeaders"] == "host;range"
    assert query_of(signed)["X-Amz-Expires"] == "900"


def test_content_md5_is_in_the_signed_headers(store):
    signed = put_url(store, "a", "u~1", Part(3, 0, 1), lifetime_s=900, content_md5=MD5)
    query = query_of(signed)
    assert query["X-Amz-SignedHeaders"] == "content-md5;host"
    assert (query["uploadId"], query["partNumber"]) == ("u~1", "3")
    assert dict(signed.headers) == {"Content-MD5": md5_base64(MD5)}


def test_urls_equal_boto3s(store):
    """What our signer is fed, key by key, against `generate_presigned_url`; its signatures are checked in test_sigv4.py."""
    for key in ("a", "data/with space+plus%&=~'()*!é", 'upload/part-00000001|{"a":"b"}'):
        ours = get_url(store, key, ByteRange(0, 10), lifetime_s=900).url
        theirs = store._client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "p/" + key, "Range": "bytes=0-9"}, 900)
        assert _without_time(ours) == _without_time(theirs)
        ours = put_url(store, key, "u+/=", Part(3, 0, 1), lifetime_s=900).url
        theirs = store._client.generate_presigned_url(
            "upload_part", {"Bucket": "bucket", "Key": "p/" + key, "UploadId": "u+/=", "PartNumber": 3}, 900
        )
        assert _without_time(ours) == _without_time(theirs)


def _without_time(url):
    parts = urlsplit(url)
    return parts[:3], {name: value for name, value in parse_qsl(parts.query) if name not in ("X-Amz-Date", "X-Amz-Signature")}


def test_urls_are_signed_for_the_public_endpoint(session):
    options = S3Options(public_endpoint="https://data.example.org:8443/")
    with contextlib.closing(S3Store("bucket", prefix="p", endpoint="http://minio:9000", session=session, options=options)) as store:
        url = get_url(store, "a", ByteRange(0, 1)).url
    assert urlsplit(url)[:3] == ("https", "data.example.org:8443", "/bucket/p/a")


@pytest.mark.s3
def test_public_endpoint_is_where_the_signature_holds(seaweedfs_server):
    """The same server under another name: requests go to one, URLs to the other."""
    public = seaweedfs_server.url.replace("127.0.0.1", "localhost")
    options = S3Options(public_endpoint=public)
    store = S3Store(
        seaweedfs_server.fresh_bucket(), endpoint=seaweedfs_server.url, session=seaweedfs_server.session(), options=options, retries=0
    )
    with contextlib.closing(store):
        store.write("a", b"bytes")
        assert request(get_url(store, "a")).data == b"bytes"
        assert request(get_url(store, "a"), url=get_url(store, "a").url.replace("localhost", "127.0.0.1")).status == 403


def test_renewed_credentials_sign_the_next_batch(store, session, monkeypatch):
    """Credentials are asked for once per batch, so that no URL mixes two."""
    renewals = []

    class Renewing:
        def get_frozen_credentials(self):
            renewals.append(1)
            return ReadOnlyCredentials(f"AKIA{len(renewals)}", SECRET, f"token{len(renewals)}")

    monkeypatch.setattr(session, "get_credentials", Renewing)
    for number in (1, 2):
        queries = [query_of(url) for url in store.presign_gets("a", [None, ByteRange(0, 1), ByteRange(1, 1)], lifetime_s=60)]
        assert {query["X-Amz-Security-Token"] for query in queries} == {f"token{number}"}


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict"), (404, "NoSuchKey")])
def test_refused_condition_is_another_version(status, code):
    with canned(status, code) as (store, _):
        assert store.write_if_unchanged("a", b"", etag="e") is False


def test_missing_bucket_is_not_another_version():
    with canned(404, "NoSuchBucket") as (store, _), pytest.raises(ObjectNotFound, match="does not exist"):
        store.write_if_unchanged("a", b"", etag=None)


def test_aws_urls_use_the_regions_host(session):
    store = S3Store("bucket", session=session)
    assert urlsplit(get_url(store, "a").url)[:3] == ("https", "bucket.s3.eu-west-1.amazonaws.com", "/a")
    store.close()


def test_session_token_is_in_the_url():
    session = boto3.Session("AKIA", SECRET, "the-token", "us-east-1")
    store = S3Store("bucket", endpoint="http://127.0.0.1:1", session=session)
    assert query_of(get_url(store, "a"))["X-Amz-Security-Token"] == "the-token"
    store.close()


@pytest.mark.parametrize("lifetime_s", [0, -1, 604_801])
def test_lifetime_is_limited_to_seven_days(store, lifetime_s):
    with pytest.raises(ConfigurationError, match="7 days"):
        get_url(store, "a", lifetime_s=lifetime_s)


def test_many_threads_sign(store):
    with ThreadPoolExecutor(8) as pool:
        urls = list(pool.map(lambda number: get_url(store, f"{number}"), range(200)))
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
        (400, "KMS.DisabledException", ServiceError, "encryption key"),
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
    for call in (store.check, lambda: get_url(store, "a")):
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
