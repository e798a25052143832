"""Request bodies of JSON, in which no key may stand twice: parsers keep the last one, people read
the first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from core.errors import InvalidInput


class JsonRoute(APIRoute):
    """A route whose JSON body is read by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """As `json.loads`.

    Raises:
        InvalidInput: a key stands twice in one object; ``param`` is its path.
    """
    repeated: list[tuple[dict[str, Any], str]] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.append((found, next(key for key, n in counts.items() if n > 1)))
        return found

    value = json.loads(body, object_pairs_hook=made)
    if repeated:
        # of the objects that end last: one inside may be gone with a value that was replaced
        place, key = repeated[-1]
        # half a surrogate pair, which JSON can spell, cannot be sent back
        param = ".".join([*_path_to(place, value), key]).encode("utf-8", "backslashreplace")
        name = param.decode()
        raise InvalidInput(f"{name} stands twice in the request body; keep one.", param=name)
    return value


def _path_to(place: object, root: object) -> tuple[str, ...]:
    """Names and positions that lead from ``root`` to ``place`` inside it."""
    left: list[tuple[tuple[str, ...], object]] = [((), root)]
    while left:
        path, here = left.pop()
        if here is place:
            return path
        if isinstance(here, dict):
            left += [((*path, name), part) for name, part in here.items()]
        elif isinstance(here, list):
            left += [((*path, str(at)), part) for at, part in enumerate(here)]
    raise AssertionError("the place is inside")
