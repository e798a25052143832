"""What needs no Redis: the broker's URL in redis-py's words, and how long is written."""

from __future__ import annotations

import pytest

from api.rates import Allowance, RequestLimiter


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0?visibility_timeout=3600",
        "redis+socket:///nowhere/broker%20one.sock?virtual_host=2",
        "redis+socket:///nowhere/broker.sock?virtual_host=x",
        "rediss://:secret@127.0.0.1:1/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=/nowhere/ca.pem",
        "rediss://127.0.0.1:1/0?ssl_cert_reqs=none",
    ],
)
def test_every_url_that_celery_takes_is_taken(url: str, caplog: pytest.LogCaptureFixture) -> None:
    limiter = RequestLimiter(url, 60)
    assert limiter.take("key") is None
    limiter.close()
    (said,) = caplog.records
    # not that something of the URL is not understood
    assert "rror" in said.getMessage()
    assert "connect" in said.getMessage()


@pytest.mark.parametrize(
    ("reset_s", "shown"),
    [(0.1204, "121ms"), (8.64, "8.64s"), (60.0, "1m0s"), (72.172, "1m12.172s")],
)
def test_durations_are_written_as_openai_does(reset_s: float, shown: str) -> None:
    left = Allowance(per_minute=60, remaining=3, reset_s=reset_s, wait_s=0.0)
    assert left.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": shown,
    }


def test_clients_are_never_told_to_come_too_early() -> None:
    headers = Allowance(per_minute=600, remaining=0, reset_s=60.0, wait_s=0.0991).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "100")
