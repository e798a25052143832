"""An object store from its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.errors import InvalidInput
from core.objects.local import LocalStore
from core.objects.s3 import S3Store
from core.objects.store import ObjectStore


def open_store(
    url: str,
    *,
    s3_endpoint: str | None = None,
    s3_region: str = "us-east-1",
    s3_access_key_id: str | None = None,
    s3_secret_access_key: str | None = None,
) -> ObjectStore:
    """The store at ``file:///folder`` or ``s3://bucket/prefix``; no network is touched.

    Raises:
        InvalidInput: any other URL.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        store = LocalStore(Path(unquote(parts.path)))
        store.discard_abandoned()
        return store
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(
            parts.netloc,
            parts.path.strip("/"),
            endpoint=s3_endpoint,
            region=s3_region,
            access_key_id=s3_access_key_id,
            secret_access_key=s3_secret_access_key,
        )
    raise InvalidInput(
        f"{url!r} is no place for objects; write file:///folder or s3://bucket/prefix."
    )
