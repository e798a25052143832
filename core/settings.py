"""Every setting, its default and its reason. Read once at a process's edge (`api.main`, `api.cli`,
`worker.app`) and passed down as values; nothing else reads the environment.

Each field is set by ``GREENTUNE_<NAME>``; with nothing set, the service runs on one machine out of
one folder: SQLite, an embedded Valkey and a local object folder under ``home``.
"""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import (
    AwareDatetime,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from core.errors import StartRefused

# The kernel's limit on a unix socket's path is 108 bytes with the closing NUL on Linux, 104 on
# macOS; the smaller one holds everywhere.
SOCKET_PATH_MAX_BYTES = 103
# what each URL may begin with
PREFIXES = {
    "database_url": ("sqlite:///", "postgresql://", "postgres://", "postgresql+psycopg://"),
    "broker_url": ("redis://", "rediss://", "redis+socket:///"),
    "objects_url": ("file://", "s3://"),
    "s3_endpoint": ("http://", "https://"),
}

#: a year: of no use to any setting, and still a duration that every clock can add
LONGEST_S = 365 * 86_400.0

DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def default_home() -> Path:
    """A per-user state folder."""
    return Path.home() / ".local" / "share" / "greentune"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="GREENTUNE_", env_ignore_empty=True)

    home: Path = Field(default_factory=default_home)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)

    #: None: SQLite at ``home/greentune.db``
    database_url: str | None = None
    #: None: a Valkey server of our own on the unix socket `broker_socket`
    broker_url: str | None = None
    #: None: ``home/objects``; else ``file:///path`` or ``s3://bucket/prefix``
    objects_url: str | None = None
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None

    #: grid zone of this host, used when a job names none; None: stated as unknown, never guessed
    zone: str | None = None
    #: "static" (yearly averages), "trace" (replays the CSV files in ``carbon_traces``), or a live
    #: provider: "electricity_maps", "watttime", "gb", "entsoe"
    carbon_signal: str = "static"
    carbon_traces: Path | None = None
    #: recorded seconds per second of the clock, and the moment (RFC 3339) at which the two agree:
    #: for demonstrations, where an hour of the grid should pass in seconds
    carbon_trace_speed: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    carbon_trace_anchor: AwareDatetime | None = None
    #: of Electricity Maps or ENTSO-E
    carbon_token: SecretStr | None = None
    #: of WattTime
    carbon_user: str | None = None
    carbon_password: SecretStr | None = None
    #: another address than the provider's own: a newer version, a mirror
    carbon_url: str | None = None
    #: so long a provider's last value stands in when it is away; then the zone's yearly average
    carbon_staleness_s: float = Field(default=10_800.0, ge=0, le=LONGEST_S)
    #: power usage effectiveness of the building: total energy over computing energy
    pue: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    #: the hardware's own footprint (making, transport, disposal) over the hours that it is expected
    #: to serve; M of the SCI. None: not known, counted as 0 and said so
    embodied_g_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    meter_interval_s: float = Field(default=5.0, gt=0, le=LONGEST_S)

    #: models that jobs may name: hub ids, or ``name=/folder`` for a local copy
    models: Annotated[tuple[str, ...], NoDecode] = (DEMO_MODEL,)
    organization: str = "greentune"
    #: tell ``paused``, which is none of OpenAI's states, as ``queued``: for clients that refuse
    #: values they do not know, and with one paused job could list none
    strict_status: bool = False

    max_file_bytes: int = Field(default=512 * 1024**2, ge=1)
    #: of a file that is sent in parts
    max_upload_bytes: int = Field(default=8 * 1024**3, ge=1)
    max_line_bytes: int = Field(default=1024**2, ge=1)
    min_examples: int = Field(default=10, ge=1)
    #: of one tenant, paused ones included: a loop gone wild must not fill the queue of all
    max_active_jobs: int = Field(default=1000, ge=1)
    #: of one tenant: files, results too, and unfinished uploads
    max_stored_bytes: int = Field(default=100 * 1024**3, ge=1)
    #: of one API key, or without a valid one of one address; all API processes together, counted in
    #: the broker's Redis; 0: no limit
    requests_per_minute: int = Field(default=600, ge=0, le=60_000)

    #: jobs that one worker process trains at a time
    worker_slots: int = Field(default=1, ge=1)
    #: a worker that is silent for so long has lost its job
    lease_s: float = Field(default=60.0, gt=0, le=LONGEST_S)
    heartbeat_s: float = Field(default=5.0, gt=0, le=LONGEST_S)
    sweep_every_s: float = Field(default=10.0, gt=0, le=LONGEST_S)
    #: attempts after which a job that keeps killing its workers fails
    max_attempts: int = Field(default=5, ge=1)

    @field_validator("models", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("models")
    @classmethod
    def _some_model(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(entry.partition("=")[0] for entry in value) or not value:
            raise ValueError("must name a model, or several with commas between them")
        return value

    @field_validator(*PREFIXES)
    @classmethod
    def _known_place(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        prefixes = PREFIXES[str(info.field_name)]
        if not value.startswith(prefixes):
            raise ValueError(f"must begin with one of {', '.join(prefixes)}")
        # SQLAlchemy reads the database's URL by rules of its own
        if info.field_name != "database_url":
            try:
                _ = urlsplit(value).port
            except ValueError as error:
                raise ValueError("its host or port cannot be read") from error
        return value

    @model_validator(mode="after")
    def _heartbeats_keep_the_lease(self) -> Self:
        if self.heartbeat_s >= self.lease_s:
            raise ValueError(
                "GREENTUNE_LEASE_S must be longer than GREENTUNE_HEARTBEAT_S (several times is "
                "best), or a worker that is well loses its job"
            )
        return self

    @property
    def resolved_database_url(self) -> str:
        """SQLAlchemy URL; bare ``postgres://`` and ``postgresql://`` get the psycopg 3 driver."""
        if self.database_url is None:
            return f"sqlite:///{quote(str(self.home / 'greentune.db'))}"
        for prefix in ("postgres://", "postgresql://"):
            if self.database_url.startswith(prefix):
                return "postgresql+psycopg://" + self.database_url.removeprefix(prefix)
        return self.database_url

    @property
    def resolved_broker_url(self) -> str:
        return self.broker_url or f"redis+socket://{quote(str(self.broker_socket))}"

    @property
    def broker_socket(self) -> Path:
        """Where the embedded broker listens: in ``home``, or under a short folder of this user's
        where that path is too long for a socket. The same home always gets the same path.
        """
        home = self.home.absolute()
        inside = home / "broker.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_MAX_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
        # not the temporary folder of TMPDIR: every process must find the same one
        return Path(f"/tmp/greentune-{os.getuid()}") / f"{digest}.sock"  # noqa: S108

    @property
    def resolved_objects_url(self) -> str:
        return self.objects_url or (self.home / "objects").absolute().as_uri()

    @property
    def objects_access(self) -> dict[str, Any]:
        """What `core.objects.opening.open_store` needs, by its names."""
        key_id, secret = self.s3_access_key_id, self.s3_secret_access_key
        return {
            "url": self.resolved_objects_url,
            "s3_endpoint": self.s3_endpoint,
            "s3_region": self.s3_region,
            "s3_access_key_id": None if key_id is None else key_id.get_secret_value(),
            "s3_secret_access_key": None if secret is None else secret.get_secret_value(),
        }

    @property
    def carbon_access(self) -> dict[str, Any]:
        """What `core.carbon.signal.LiveOptions` needs, by its names."""
        token, password = self.carbon_token, self.carbon_password
        return {
            "token": "" if token is None else token.get_secret_value(),
            "user": self.carbon_user or "",
            "password": "" if password is None else password.get_secret_value(),
            "base_url": self.carbon_url,
            "staleness": timedelta(seconds=self.carbon_staleness_s),
        }

    @property
    def model_folders(self) -> dict[str, str | None]:
        """Model id -> local folder, or None where the id itself is loaded."""
        pairs = (entry.partition("=") for entry in self.models)
        return {name: folder or None for name, _, folder in pairs}


def read_settings(**given: Any) -> Settings:
    """From the environment; ``given`` goes before it.

    Raises:
        StartRefused: one is wrong; names it without its value, because URLs carry passwords.
    """
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        rule = problem["msg"].removeprefix("Value error, ")
        rule = rule[:1].lower() + rule[1:]
        if not problem["loc"]:
            raise StartRefused(f"{rule[:1].upper()}{rule[1:]}.") from error
        name = str(problem["loc"][0])
        where = f"--{name}" if name in given else f"GREENTUNE_{name.upper()}"
        raise StartRefused(f"{where} is wrong: {rule}.") from error
    return settings.model_copy(update={"home": settings.home.expanduser().absolute()})
