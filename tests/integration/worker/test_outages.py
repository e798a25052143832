"""A provider that fails in every way while a job trains: the job goes on, and its record says so.

The provider is a local server; every step of the job takes an hour of the test's clock. Each fault
lasts two hours after a good one, and one of them longer than last known values may stand in.
"""

from __future__ import annotations

import json
import signal as signals
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.carbon.energy import EnergySample
from core.carbon.intensity import Intensity
from core.carbon.live import LiveSignal
from core.carbon.providers.electricity_maps import ElectricityMaps
from core.carbon.providers.fetch import Fetcher
from core.carbon.static import StaticSignal
from core.jobs import store
from core.jobs.lifecycle import Status
from core.training.hooks import Hook, StepRecord
from tests.fixtures.provider_server import ProviderServer
from tests.integration.worker.planned import HOUR, Planned
from worker import runner
from worker.calibration import Calibration

GOOD = 300.0
STALENESS = timedelta(hours=3)
LONG = "away for hours"
#: fault -> what the record gives as its reason
FAULTS = {
    "refused": "cannot be reached",
    "cut off": "cannot be reached (RemoteProtocolError)",
    "timeout": "did not answer in time",
    "slow drip": "did not answer in time",
    "401": "the token is refused",
    "403": "the token is refused",
    "404": "does not know zone",
    "429": "too many requests",
    "500": "it answers 500",
    "redirect": "it redirects (302), which is not followed",
    "endless": "longer than 8 MiB",
    "garbage": "without JSON",
    "NaN": "cannot be an intensity",
    "negative": "cannot be an intensity",
    "another zone": "told zone 'FR'",
    "another unit": "another unit",
    "stale": "newest value",
    "no values": "no values",
    LONG: "it answers 503",
}
#: faults of a status, and of speed
REFUSALS: dict[str, dict[str, Any]] = {
    "refused": {},
    "timeout": {"hang_s": 600},
    "slow drip": {"drip_s": 0.02},
    "401": {"status": 401},
    "403": {"status": 403},
    "404": {"status": 404},
    "429": {"status": 429, "headers": {"Retry-After": "2"}},
    "500": {"status": 500},
    "redirect": {"status": 302, "headers": {"Location": "/carbon-intensity/elsewhere"}},
    "cut off": {"is_cut": True},
    LONG: {"status": 503},
}
Body = dict[str, Any]


def changed(body: Body, change: Callable[[Body], Body]) -> Body:
    """With every value of the body changed."""
    return {
        key: [change(row) for row in value] if isinstance(value, list) else value
        for key, value in change(body).items()
    }


def worth(value: float) -> Callable[[Body], Body]:
    return lambda body: changed(
        body, lambda row: row | ({"carbonIntensity": value} if "carbonIntensity" in row else {})
    )


def aged(row: Body) -> Body:
    if "datetime" not in row:
        return row
    return row | {"datetime": (datetime.fromisoformat(row["datetime"]) - 100 * HOUR).isoformat()}


#: faults of content
BODIES: dict[str, Callable[[Body], Any]] = {
    "endless": lambda body: b" " * 9 * 1024**2 + json.dumps(body).encode(),
    "garbage": lambda _: b"\x00<html>maintenance</html>",
    "NaN": worth(float("nan")),
    "negative": worth(-GOOD),
    "another unit": worth(1000 * GOOD),
    "another zone": lambda body: body | {"zone": "FR"},
    "stale": lambda body: changed(body, aged),
    "no values": lambda body: body | {"history": [], "forecast": []},
}


class Grid:
    """Electricity Maps as the script wants it to be: a `Provider` over a real connection."""

    def __init__(self) -> None:
        self.server = ProviderServer()
        self._fault: str | None = None
        #: a good answer may take its time on a busy machine, a slow one is given up soon
        self._patient, self._impatient = (
            ElectricityMaps(
                Fetcher(
                    "Electricity Maps",
                    self.server.url,
                    timeout=httpx.Timeout(wait_s),
                    whole_s=wait_s,
                    per_minute=100_000,
                    sleep=lambda _: None,
                )
            )
            for wait_s in (60.0, 0.05)
        )

    @property
    def _provider(self) -> ElectricityMaps:
        return self._impatient if self._fault in ("timeout", "slow drip") else self._patient

    def current(self, zone: str, now: datetime) -> Intensity:
        return self._provider.current(zone, now)

    def history(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        return self._provider.history(zone, start, end)

    def forecast(self, zone: str, now: datetime) -> tuple[Intensity, ...]:
        return self._provider.forecast(zone, now)

    def play(self, fault: str | None, hour: datetime) -> None:
        """From now on, with good values as they are known in this hour."""
        if (self._fault == "refused") != (fault == "refused"):
            (self.server.go_away if fault == "refused" else self.server.come_back)()
        self._fault = fault
        for path in ("history", "latest", "forecast"):
            body, more = self._body(path, hour), {}
            if fault in BODIES:
                body = BODIES[fault](body)
            elif fault is not None:
                body, more = {"error": fault}, REFUSALS[fault]
            if fault in ("slow drip", "cut off"):
                body = json.dumps(self._body(path, hour)).encode()
            self.server.answer(f"/carbon-intensity/{path}", body, **more)

    @staticmethod
    def _body(path: str, hour: datetime) -> dict[str, Any]:
        def row(offset: int) -> dict[str, Any]:
            return {"datetime": (hour + offset * HOUR).isoformat(), "carbonIntensity": GOOD}

        rows = {
            "latest": row(0),
            "history": {"history": [row(n) for n in range(-24, 1)]},
            "forecast": {"forecast": [row(n) for n in range(72)]},
        }
        return {"zone": "DE"} | rows[path]


class Hours(Hook):
    """An hour and a watt-hour for every step, while the grid follows the script."""

    def __init__(
        self, desk: Planned, grid: Grid, script: list[str | None], calibration: Calibration
    ) -> None:
        self._desk, self._grid, self._script = desk, grid, script
        self._log = calibration._log

    def on_step(self, record: StepRecord) -> None:
        clock = self._desk.clock
        begin = clock.now
        # before the hour begins: the meter, on its own thread, asks as soon as it has begun
        self._grid.play(self._script[record.step - 1], begin + HOUR)
        clock.now += HOUR
        sample = EnergySample(
            started_at=begin,
            ended_at=clock.now,
            device="gpu",
            energy_j=3_600.0,
            method="nvml_counter",
        )
        self._log.take((sample,))


#: of each step's hour
SCRIPT = [fault for name in FAULTS for fault in (None, *[name] * (6 if name == LONG else 2))] + [
    None
] * 4


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planned]:
    before = signals.getsignal(signals.SIGTERM)
    desk = Planned(tmp_path, tiny_model, "d")
    grid = Grid()
    grid.play(None, desk.start)
    signal = LiveSignal(
        grid,
        staleness=STALENESS,
        refresh=HOUR / 2,
        forecast_refresh=HOUR / 2,
        retry=HOUR / 2,
        clock=desk.clock,
    )
    desk.world = replace(desk.world, signal=signal, zone="DE")
    real = runner.train

    def train(prepared: Any, *, hooks: list[Hook], **rest: Any) -> Any:
        calibration = next(h for h in hooks if isinstance(h, Calibration))
        hours = Hours(desk, grid, SCRIPT, calibration)
        return real(prepared, hooks=[hours, *hooks], **rest)

    monkeypatch.setattr(runner, "train", train)
    yield desk
    grid.server.close()
    desk.database.dispose()
    signals.signal(signals.SIGTERM, before)


def test_a_job_outlives_every_fault_of_its_provider(
    desk: Planned, chat_lines: Callable[[int], bytes]
) -> None:
    steps = len(SCRIPT)
    wishes = {"zone": "DE", "schedule": "green", "deadline": desk.start + 90 * HOUR}
    job_id = desk.submit(chat_lines(40), green=wishes, n_epochs=9, max_steps=steps)
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step, job.error) == (Status.SUCCEEDED, steps, None)
    with desk.database.read() as session:
        assert len(store.list_attempts(session, job_id)) == 1, "training never stopped"
        rows = store.list_energy(session, job_id)
    by_hour = {row.started_at: row for row in rows if row.method == "nvml_counter"}
    assert len(by_hour) == steps

    average = StaticSignal().at("DE", desk.start).value_g_per_kwh
    for step, fault in enumerate(SCRIPT):
        row = by_hour[desk.start + step * HOUR]
        n_since_good = 0
        while SCRIPT[step - n_since_good] is not None:
            n_since_good += 1
        # a good answer tells of the hour that has begun as well
        is_known = n_since_good <= 1
        is_held = not is_known and (n_since_good - 1) * HOUR <= STALENESS
        source = row.intensity_source or ""
        assert row.intensity_g_per_kwh == (GOOD if is_known or is_held else average), (step, fault)
        assert row.intensity_is_estimated is not is_known, (step, fault)
        assert ("last known value" in source) is is_held, (step, fault)
        assert ("static average" in source) is not (is_known or is_held), (step, fault)
        if not is_known:
            assert FAULTS[fault or ""] in source, (step, fault, source)

    report = json.loads(next(_reports(desk, job.result_files)))
    assert report["unaccounted"]["energy_wh"] == 0
    assert report["intensity_g_per_kwh"]["stale"] is True
    shown = " ".join(report["intensity_g_per_kwh"]["source"])
    assert all(reason in shown for reason in FAULTS.values())
    assert all(interval["intensity_g_per_kwh"] > 0 for interval in report["intervals"])


def _reports(desk: Planned, file_ids: tuple[str, ...]) -> Iterator[bytes]:
    for file_id in file_ids:
        if (content := desk.result_file(file_id)).startswith(b"{"):
            yield content
