"""Our signatures are botocore's, to the last byte, and AWS's own published one."""

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from score_core.checksum import md5_base64, md5_hex
from score_core.stores.sigv4 import Credentials, QuerySigner, encoded

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30)
HOSTS = st.sampled_from(["http://127.0.0.1:9000", "https://S3.Example.org", "https://h:443", "http://h:443", "https://[::1]:9000"])
RANGES = st.tuples(st.integers(0, 1 << 45), st.integers(1, 1 << 31)).map(lambda pair: f"bytes={pair[0]}-{pair[0] + pair[1]}")
HEADERS = st.one_of(
    st.just((None, "")),
    st.tuples(st.just("range"), RANGES),
    st.tuples(st.just("content-md5"), st.binary().map(lambda data: md5_base64(md5_hex(data)))),
)
URLS = st.builds(lambda host, key: f"{host}/bucket/{quote(key, safe='/~')}", HOSTS, TEXT)
PARTS = st.builds("partNumber={}&uploadId={}".format, st.integers(1, 10_000), TEXT.map(encoded))


def botocores(credentials, region, method, url, query, header, moment, lifetime_s):
    """The oracle's URL."""
    request = AWSRequest(method, f"{url}?{query}" if query else url, headers={header[0]: header[1]} if header[0] else {})
    with patch("botocore.auth.get_current_datetime", lambda *_, **__: datetime.fromtimestamp(moment, UTC)):
        S3SigV4QueryAuth(ReadOnlyCredentials(*credentials), "s3", region, expires=lifetime_s).add_auth(request)
    return request.url


@given(
    st.builds(Credentials, TEXT, TEXT, st.none() | TEXT.filter(bool)),
    st.sampled_from(["us-east-1", "eu-west-1", "antarctica"]),
    st.sampled_from(["GET", "PUT"]),
    URLS,
    st.just("") | PARTS,
    HEADERS,
    st.integers(1_400_000_000, 4_000_000_000),
    st.integers(1, 604_800),
)
def test_every_url_is_botocores(credentials, region, method, url, query, header, moment, lifetime_s):
    signer = QuerySigner(credentials, region, method, url, signed_at=moment, lifetime_s=lifetime_s, signed_header=header[0])
    assert signer.sign(query, header[1]) == botocores(credentials, region, method, url, query, header, moment, lifetime_s)


def test_aws_published_example_is_reproduced():
    """The example of "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)", Amazon S3 API reference."""
    signer = QuerySigner(
        Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        "us-east-1",
        "GET",
        "https://examplebucket.s3.amazonaws.com/test.txt",
        signed_at=1_369_353_600,
        lifetime_s=86_400,
    )
    assert signer.sign().endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


def test_one_signer_signs_many():
    signer = QuerySigner(Credentials("a", "b"), "r", "GET", "http://h/b/k", signed_at=0, lifetime_s=1, signed_header="range")
    first, second = signer.sign(header="bytes=0-1"), signer.sign(header="bytes=2-3")
    assert first != second
    assert signer.sign(header="bytes=0-1") == first


def test_credentials_are_not_shown():
    assert "hunter2" not in repr(Credentials("AKIA", "hunter2", "hunter2"))
