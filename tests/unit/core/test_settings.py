"""Settings: a wrong one is refused by its name, never by its value, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.errors import StartRefused
from core.settings import Settings, read_settings


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("DATABASE_URL", "nonsense", "must begin with one of sqlite:///, postgresql://"),
        ("BROKER_URL", "nonsense", "must begin with one of redis://"),
        ("BROKER_URL", "amqp://host//", "must begin with one of redis://"),
        ("BROKER_URL", "redis://secret:hush@host:x/0", "its host or port cannot be read"),
        ("OBJECTS_URL", "nonsense", "must begin with one of file://, s3://"),
        ("S3_ENDPOINT", "host:8333", "must begin with one of http://"),
        ("MODELS", ",", "must name a model"),
        ("MODELS", "=/folder", "must name a model"),
        ("PUE", "inf", "finite number"),
        ("PORT", "x", "valid integer"),
        ("LEASE_S", "inf", "less than or equal to"),
        ("CARBON_STALENESS_S", "1e300", "less than or equal to"),
        ("METER_INTERVAL_S", "inf", "less than or equal to"),
        ("MAX_FILE_BYTES", "-1", "greater than or equal to 1"),
        ("MAX_LINE_BYTES", "0", "greater than or equal to 1"),
        ("MIN_EXAMPLES", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(f"GREENTUNE_{name}", value)
    with pytest.raises(StartRefused) as refused:
        read_settings()
    assert refused.value.message.startswith(f"GREENTUNE_{name} is wrong: ")
    assert rule in refused.value.message
    assert refused.value.message.endswith(".")
    assert "Value error" not in refused.value.message
    assert "hush" not in refused.value.message


def test_an_option_is_named_as_it_was_given() -> None:
    with pytest.raises(StartRefused, match=r"^--port is wrong: "):
        read_settings(port=99_999)


def test_heartbeats_must_keep_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENTUNE_LEASE_S", "9")
    with pytest.raises(StartRefused, match=r"^GREENTUNE_LEASE_S must be longer than GREENTUNE_H"):
        read_settings(heartbeat_s=9.0)


def test_what_is_right_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GREENTUNE_HOME", "state")
    # SQLAlchemy reads this; the rules of other URLs would stumble over the password
    monkeypatch.setenv("GREENTUNE_DATABASE_URL", "postgres://user:pass/word@host/name")
    monkeypatch.setenv("GREENTUNE_BROKER_URL", "redis+socket:///run/broker%20one.sock")
    monkeypatch.setenv("GREENTUNE_OBJECTS_URL", "s3://bucket/prefix")
    settings = read_settings()
    assert settings.home == tmp_path / "state"
    assert settings.resolved_database_url == "postgresql+psycopg://user:pass/word@host/name"
    assert settings.resolved_broker_url == "redis+socket:///run/broker%20one.sock"
    assert settings.resolved_objects_url == "s3://bucket/prefix"


def test_the_defaults_are_right() -> None:
    assert Settings(home=Path("/h")).model_folders


def test_every_setting_is_in_the_table_of_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text()
    told = set()
    for row in re.findall(r"^\| (`GREENTUNE_[^|]*?) \|", page, flags=re.MULTILINE):
        first, *others = re.findall(r"`(\w+)`", row)
        told |= {first, *others}
        # "`GREENTUNE_S3_ENDPOINT`, `_REGION`": up to some underscore the name is the first one's
        parts = first.split("_")
        told |= {"_".join(parts[:n]) + other for other in others for n in range(1, len(parts))}
    assert {f"GREENTUNE_{name.upper()}" for name in Settings.model_fields} - told == set()


def test_compose_hands_on_every_setting_that_it_does_not_decide_itself() -> None:
    """One in `.env` that no container hears of would have no effect, and nobody would be told."""
    file = (Path(__file__).parents[3] / "docker-compose.yml").read_text()
    handed_on = set(re.findall(r"^  GREENTUNE_([A-Z0-9_]+):", file, re.MULTILINE))
    # the image's own, and those of `greentune serve`
    decided = {"HOME", "HOST", "PORT", "S3_REGION"}
    assert {name.upper() for name in Settings.model_fields} - handed_on == decided
