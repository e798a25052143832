"""Encoder-decoder models and a task's tables, over the REST API: from upload to a loaded result."""

from __future__ import annotations

import io
import signal
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from fastapi.testclient import TestClient

from api.main import create_app
from core.carbon.static import StaticSignal
from core.data.validation import DataLimits
from core.jobs import keys, service
from core.jobs.database import now
from core.settings import Settings
from migrations import upgrade
from tests.fixtures.pair_models import build_pair_models
from tests.integration.worker.conftest import TENANT
from worker.reporter import Reporter
from worker.runner import Training
from worker.world import World

N_ROWS = 12
ARTICLES = [f"alpha {n} beta {n % 5} gamma" for n in range(N_ROWS)]
HEADLINES = [f"alpha {n % 5}" for n in range(N_ROWS)]
CSV = "abstract,tldr,year\n" + "".join(
    f'"{article}, really",{headline},2020\n'
    for article, headline in zip(ARTICLES, HEADLINES, strict=True)
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_pair_models(tmp_path_factory.mktemp("pairs"))


class Service:
    """The API as its caller has it; trainings run in this process when they are asked to."""

    def __init__(self, home: Path, models: dict[str, Path]) -> None:
        self._models = {name.replace(" ", "-"): str(path) for name, path in models.items()}
        settings = Settings(
            home=home, models=tuple(f"{name}={path}" for name, path in self._models.items())
        )
        upgrade(settings.resolved_database_url)
        self._home = home
        self._app = create_app(settings)
        self.http = TestClient(self._app)

    def __enter__(self) -> Self:
        self.http.__enter__()
        self._held: Any = self._app.state.services
        with self._held.database.transaction() as session:
            key = keys.create(session, tenant=TENANT, name="test", now=datetime.now(UTC))
        self.client = openai.OpenAI(
            base_url="http://testserver/v1", api_key=key, http_client=self.http, max_retries=0
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.http.__exit__(None, None, None)

    def upload(self, name: str, content: bytes) -> Any:
        return self.client.files.create(file=(name, content), purpose="fine-tune")

    def submit(self, file_id: str, model: str, **green: Any) -> str:
        hyperparameters = {"n_epochs": 1, "batch_size": 4}
        job = self.client.fine_tuning.jobs.create(
            model=model,
            training_file=file_id,
            validation_file=file_id,
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            extra_body={"green": {"rho": 0.7, "zone": "FR", **green}},
        )
        return job.id

    def train(self, job_id: str) -> Any:
        database = self._held.database
        world = World(
            database=database,
            objects=self._held.objects,
            signal=StaticSignal(),
            zone=None,
            pue=1.0,
            meter_interval_s=0.2,
            attribution="machine",
            models=dict(self._models),
            limits=DataLimits(),
            home=self._home,
            patience_s=5.0,
            max_attempts=1,
        )
        with database.transaction() as session:
            claim = service.claim(
                session, worker="w", now=now(session), lease_s=60, max_attempts=1, job_id=job_id
            )
        assert claim is not None
        with Reporter(
            database, tenant=TENANT, job_id=job_id, fence=claim.fence, patience_s=5.0
        ) as reporter:
            Training(claim, world, reporter).run()
        return self.client.fine_tuning.jobs.retrieve(job_id)

    def result(self, job: Any, folder: Path) -> Path:
        """The model's folder out of the archive that the caller downloads."""
        for file_id in job.result_files:
            if self.client.files.retrieve(file_id).filename.endswith(".tar"):
                content = self.client.files.content(file_id).read()
                with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                    archive.extractall(folder, filter="data")
                (found,) = folder.iterdir()
                return found
        raise AssertionError("no archive among the result files")


@pytest.fixture
def rest(tmp_path: Path, models: dict[str, Path]) -> Iterator[Service]:
    before = signal.getsignal(signal.SIGTERM)
    home = tmp_path / "home"
    home.mkdir()
    with Service(home, models) as started:
        yield started
    signal.signal(signal.SIGTERM, before)


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"source": ARTICLES, "target": HEADLINES}), out)
    return out.getvalue()


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + b"\xff" * 20 + content[at + 20 :]


@pytest.mark.parametrize(
    ("model", "name", "content", "columns"),
    [
        ("tied-T5", "papers.csv", CSV.encode(), {"src": "abstract", "summary": "tldr"}),
        ("BART", "papers.PARQUET", parquet(), None),
    ],
)
def test_a_table_becomes_a_model_that_loads(
    rest: Service, tmp_path: Path, model: str, name: str, content: bytes, columns: Any
) -> None:
    file = rest.upload(name, content)
    assert file.status == "processed"
    assert file.validation["n_examples"] == N_ROWS
    task = {"name": "scitldr", "columns": columns}
    job_id = rest.submit(file.id, model, task=task, eval={"max_examples": 2, "max_new_tokens": 4})
    job = rest.train(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.green["task"] == {"name": "scitldr", "columns": columns or {}}
    events = rest.client.fine_tuning.jobs.list_events(job_id, limit=100)
    asked = [set(e.data) for e in events if e.data and "eval_examples" in e.data]
    assert len(asked) == 2, "before the first step and after the last"
    assert all({"eval_rouge1", "eval_rouge2", "eval_rougeL"} <= names for names in asked)
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        rest.result(job, tmp_path / "result")
    )
    assert loaded.config.is_encoder_decoder


@pytest.mark.parametrize(
    ("task", "param", "said"),
    [
        ({"name": "sumarise"}, "green.task.name", "scitldr, dialogsum, webquestions, piqa"),
        ({"name": "scitldr", "columns": {"q": "x"}}, "green.task.columns", "src, summary"),
        ({"columns": {}}, "green.task.name", "name"),
    ],
)
def test_an_unknown_task_is_refused_and_the_known_ones_named(
    rest: Service, task: Any, param: str, said: str
) -> None:
    file = rest.upload("papers.csv", CSV.encode())
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        rest.submit(file.id, "BART", task=task)
    assert caught.value.param == param


def test_a_column_that_is_not_there_fails_the_job_by_name(rest: Service) -> None:
    file = rest.upload("papers.csv", CSV.encode())
    job = rest.train(rest.submit(file.id, "BART", task={"name": "dialogsum"}))
    assert job.status == "failed"
    assert "no column 'dialogue'; its columns are: abstract, tldr, year" in job.error.message


def test_a_table_that_is_damaged_within_fails_the_job_at_once(rest: Service) -> None:
    file = rest.upload("papers.parquet", damaged(parquet(), 6))
    assert file.status == "processed", "its footer is whole"
    job = rest.train(rest.submit(file.id, "BART", task={"name": "scitldr"}))
    assert (job.status, job.error.param) == ("failed", "training_file")
    assert "cannot be read as Parquet" in job.error.message


@pytest.mark.parametrize(("name", "content"), [("p.CSV", CSV.encode()), ("p.parquet", parquet())])
def test_a_table_without_its_task_is_refused_with_the_job(
    rest: Service, name: str, content: bytes
) -> None:
    """It became a job that failed, once a worker had loaded what trains."""
    file = rest.upload(name, content)
    with pytest.raises(openai.BadRequestError, match=r"is a table; say .* green\.task") as caught:
        rest.submit(file.id, "BART")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "training_file")
    assert list(rest.client.fine_tuning.jobs.list()) == []
    rest.client.files.delete(file.id)  # no job holds it


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"x,y\n1,2\n1,2,3\n", "line 3: the row has 3 fields"),
        ("a.csv", b"x,y\n", "no rows"),
        ("a.parquet", b"no parquet at all", "cannot be read as Parquet"),
        ("a.parquet", damaged(parquet(), len(parquet()) - 60), "cannot be read as Parquet"),
    ],
)
def test_a_broken_table_is_told_at_its_upload(
    rest: Service, name: str, content: bytes, said: str
) -> None:
    file = rest.upload(name, content)
    assert file.status == "error"
    assert said in (file.status_details or "")
