"""Objects in an S3 bucket, or any server that speaks S3, through obstore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import BinaryIO, Final

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store as Bucket

from core.errors import InvalidInput, NotFound, StorageUnavailable
from core.objects.store import CHUNK_BYTES, HashedSource, StoredObject, check_key, check_range

# Up to this size one request; above it a multipart upload in parts of this size, a few at a time.
# S3 allows 10 000 parts: 80 GB.
_PART_BYTES: Final = 8 << 20
_CONCURRENT_PARTS: Final = 4
_CLIENT: Final = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=30),
    # of a whole request, a long download included
    "timeout": timedelta(hours=2),
}
_RETRY: Final = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}


class S3Store:
    """An `ObjectStore` under ``prefix`` of ``bucket``. No request is made before the first call.

    ``endpoint``: None is Amazon's; ``http://`` is accepted for servers on a private network.
    Without keys, the credentials of the environment (variables, instance role) are used.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        self._name = f"s3://{bucket}"
        values = {
            "endpoint": endpoint,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
        }
        allow_http = endpoint is not None and endpoint.startswith("http://")
        try:
            self._bucket = Bucket(
                bucket,
                prefix=prefix or None,
                region=region,
                client_options={**_CLIENT, "allow_http": allow_http},
                retry_config=_RETRY,
                **{name: value for name, value in values.items() if value is not None},
            )
        except BaseError as error:
            raise InvalidInput(f"{self._name} cannot be used: {_first_line(error)}.") from error

    def put(self, key: str, source: BinaryIO | Iterable[bytes]) -> StoredObject:
        check_key(key)
        upload = HashedSource(source)
        head = upload.take(_PART_BYTES)
        with self._named_failures(key, upload):
            if len(head) < _PART_BYTES:
                obstore.put(self._bucket, key, head, use_multipart=False)
            else:
                obstore.put(
                    self._bucket,
                    key,
                    chain([head], upload),
                    chunk_size=_PART_BYTES,
                    max_concurrency=_CONCURRENT_PARTS,
                )
            n_bytes = obstore.head(self._bucket, key)["size"]
        if n_bytes != upload.n_bytes:
            raise StorageUnavailable(
                f"{self._name} kept {n_bytes} of {upload.n_bytes} bytes of {key!r}."
            )
        return upload.stored_as(key)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        check_range(start, end)
        check_key(key)
        with self._named_failures(key):
            size = obstore.head(self._bucket, key)["size"]
            stop = size if end is None else min(end, size)
            if start >= stop:
                return iter(())
            found = obstore.get(self._bucket, key, options={"range": (start, stop)})
        return self._read(key, iter(found.stream(min_chunk_size=CHUNK_BYTES)), stop - start)

    def delete(self, key: str) -> None:
        check_key(key)
        with self._named_failures(key):
            obstore.delete(self._bucket, key)

    def _read(self, key: str, stream: Iterator[bytes], expected: int) -> Iterator[bytes]:
        n_bytes = 0
        while True:
            with self._named_failures(key):
                piece = next(stream, None)
            if piece is None:
                break
            n_bytes += len(piece)
            yield bytes(piece)
        if n_bytes != expected:
            raise StorageUnavailable(
                f"{self._name} sent {n_bytes} of {expected} bytes of {key!r}; try again."
            )

    @contextmanager
    def _named_failures(self, key: str, upload: HashedSource | None = None) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            if upload is not None and upload.failure is not None:
                raise upload.failure from None
            if upload is None and isinstance(error, (NotFoundError, FileNotFoundError)):
                raise NotFound(f"There is no object {key!r}.") from error
            raise StorageUnavailable(
                f"Object {key!r} cannot be read or written in {self._name}: {_first_line(error)}"
            ) from error


def _first_line(error: Exception) -> str:
    """Without the debug output that obstore appends."""
    return str(error).strip().partition("\n")[0][:300]
