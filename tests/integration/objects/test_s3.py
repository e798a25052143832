"""The S3 store against a real SeaweedFS."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.errors import StorageUnavailable
from core.objects.opening import open_store
from core.objects.store import ObjectStore
from tests.fixtures.services import S3Bucket, free_ports
from tests.fixtures.store_contract import StoreContract, read


def opened(bucket: S3Bucket, **changes: str) -> ObjectStore:
    values = {
        "s3_endpoint": bucket.endpoint,
        "s3_region": bucket.region,
        "s3_access_key_id": bucket.access_key_id,
        "s3_secret_access_key": bucket.secret_access_key,
        **changes,
    }
    return open_store(bucket.url, **values)


@pytest.fixture
def store(s3_bucket: S3Bucket) -> ObjectStore:
    return opened(s3_bucket)


class TestS3Store(StoreContract):
    def test_two_prefixes_of_a_bucket_are_apart(self, store: ObjectStore, s3_bucket: S3Bucket):
        store.put("a", [b"one"])
        other = opened(replace(s3_bucket, url=s3_bucket.url + "-other"))
        other.put("a", [b"two"])
        assert (read(store, "a"), read(other, "a")) == (b"one", b"two")

    def test_a_wrong_key_is_refused_without_showing_it(self, s3_bucket: S3Bucket):
        store = opened(s3_bucket, s3_secret_access_key="wrong-secret")
        with pytest.raises(StorageUnavailable) as failure:
            store.put("a", [b"x"])
        assert "wrong-secret" not in str(failure.value)

    def test_a_bucket_that_is_not_there_is_said_so(self, s3_bucket: S3Bucket):
        store = opened(replace(s3_bucket, url="s3://no-such-bucket-here"))
        with pytest.raises(StorageUnavailable, match="no-such-bucket-here"):
            store.put("a", [b"x"])


@pytest.mark.timeout(120)
def test_a_server_that_is_down_is_given_up_in_bounded_time(s3_bucket: S3Bucket):
    store = opened(s3_bucket, s3_endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    started = time.monotonic()
    with pytest.raises(StorageUnavailable):
        store.get("a")
    assert time.monotonic() - started < 60


def test_a_busy_server_is_asked_again(s3_bucket: S3Bucket):
    """503 twice, then the true answer: the caller notices nothing."""
    answers = [503, 503, 200]
    seen = []

    class Busy(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append("PUT")
            self.send_response(answers.pop(0))
            self.send_header("etag", '"x"')
            self.send_header("content-length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("etag", '"x"')
            self.send_header("content-length", "5")
            self.send_header("last-modified", "Mon, 23 Nov 2026 10:00:00 GMT")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = opened(s3_bucket, s3_endpoint=f"http://127.0.0.1:{server.server_port}")
        stored = store.put("a", [b"hello"])
        server.shutdown()
    assert stored.n_bytes == 5
    assert seen == ["PUT", "PUT", "PUT"]
