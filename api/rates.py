"""Requests per minute of an API key, and of an address calls without a valid one, over all API
processes: counted in the broker's Redis.

A token bucket: it holds a minute's requests and fills evenly. All that is stored of it is the
moment at which it will be full again (the generic cell rate algorithm of ITU-T I.371), by the
clock of Redis. A limit protects the service; it must not end it: while Redis is away, everything
is let through.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 0.5
#: so long a Redis that is away is not asked again, or each request would wait for it
RETRY_AFTER_S = 5.0
_MINUTE_US = 60_000_000
#: of IPv6 whoever has one address has this whole network of them (RFC 6177)
_IPV6_PREFIX = 64

# KEYS: the bucket. ARGV: microseconds that one request takes to come back, and a full bucket.
# Returns microseconds until a request is granted (0: this one was) and until the bucket is full.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local each, full = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = tonumber(redis.call('GET', KEYS[1]) or 0)
-- farther ahead than any bucket is: the clock was set back
if full_at > now + full then full_at = 0 end
full_at = math.max(full_at, now)
local wait = full_at + each - now - full
if wait > 0 then return {wait, full_at - now} end
full_at = full_at + each
-- not tostring: it keeps 14 digits of 16
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
return {0, full_at - now}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a key, or an address, has left with this request."""

    per_minute: int
    remaining: int
    #: until all are there again
    reset_s: float
    #: until one is; 0: this request was granted
    wait_s: float

    @property
    def headers(self) -> Mapping[str, str]:
        """As OpenAI sends them; clients that do not know ``-ms`` wait whole seconds."""
        found = {
            "x-ratelimit-limit-requests": str(self.per_minute),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": _duration(self.reset_s),
        }
        if self.wait_s:
            found["retry-after"] = str(_up(self.wait_s))
            found["retry-after-ms"] = str(_up(self.wait_s * 1000))
        return found


class RequestLimiter:
    """Buckets of ``per_minute`` requests (1..60,000) in the Redis at ``url``.

    Threads may share it. Built without a connection: that is opened by the first request.
    """

    def __init__(
        self, url: str, per_minute: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = per_minute
        # whole microseconds, so that a bucket of n grants exactly n at once
        self._each_us = _MINUTE_US // per_minute
        self._clock = clock
        self._redis = redis.Redis.from_url(
            _in_redis_words(url),
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            # a pooled connection does not survive the server's restart
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self._take = self._redis.register_script(_TAKE)
        self._lock = threading.Lock()
        #: None: Redis answers
        self._asked_again_at: float | None = None

    def take(self, holder: str) -> Allowance | None:
        """One request of the holder's: a key's id, or `of_address`. None: let through uncounted, as
        Redis is away.
        """
        if not self._may_ask():
            return None
        full_us = self._each_us * self._per_minute
        try:
            wait_us, reset_us = self._take(
                keys=[f"greentune:requests:{holder}"], args=[self._each_us, full_us]
            )
        except (redis.RedisError, OSError) as error:
            self._is_away(error)
            return None
        self._is_back()
        return Allowance(
            per_minute=self._per_minute,
            remaining=(full_us - reset_us) // self._each_us,
            reset_s=reset_us / 1e6,
            wait_s=wait_us / 1e6,
        )

    def close(self) -> None:
        self._redis.close()

    def _may_ask(self) -> bool:
        with self._lock:
            if self._asked_again_at is None:
                return True
            if self._clock() < self._asked_again_at:
                return False
            # this request asks; the others do not wait with it
            self._asked_again_at = self._clock() + RETRY_AFTER_S
            return True

    def _is_away(self, error: Exception) -> None:
        with self._lock:
            is_news = self._asked_again_at is None
            self._asked_again_at = self._clock() + RETRY_AFTER_S
        if is_news:
            logger.warning("requests are not limited while the broker is away: %s", error)

    def _is_back(self) -> None:
        if self._asked_again_at is None:
            return
        with self._lock:
            is_news = self._asked_again_at is not None
            self._asked_again_at = None
        if is_news:
            logger.warning("the broker is back: requests are limited again")


def of_address(host: str | None) -> str:
    """The holder of a bucket that calls from ``host`` share; None: of a Unix socket."""
    if host is None:
        return "address:local"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name that a proxy gave
        return f"address:{host}"
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None:
            network = ipaddress.ip_network((int(address), _IPV6_PREFIX), strict=False)
            return f"address:{network.network_address}"
        address = inner
    return f"address:{address}"


def _in_redis_words(broker_url: str) -> str:
    """Celery's URL of a Redis as redis-py reads it, which refuses options that it does not know."""
    place, _, query = broker_url.replace("redis+socket://", "unix://", 1).partition("?")
    given = dict(parse_qsl(query))
    kept = {}
    if place.startswith("unix://") and given.get("virtual_host", "").isdecimal():
        kept["db"] = given["virtual_host"]
    if place.startswith("rediss://"):
        kept = {name: value for name, value in given.items() if name.startswith("ssl_")}
        if "ssl_cert_reqs" in kept:
            kept["ssl_cert_reqs"] = kept["ssl_cert_reqs"].removeprefix("CERT_").lower()
    return f"{place}?{urlencode(kept)}"


def _up(value: float) -> int:
    return int(-(-value // 1))


def _duration(seconds: float) -> str:
    """Such as 120ms, 8.64s or 1m0s."""
    milliseconds = _up(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
