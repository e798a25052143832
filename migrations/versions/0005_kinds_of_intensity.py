"""Jobs tell their grams by kind of intensity.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_JOULES_PER_KWH = 3_600_000.0


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("spent_by_kind", JSON, nullable=False, server_default=sa.text("'[]'"))
    )
    samples = sa.table(
        "energy_samples",
        *map(sa.column, ("job_id", "energy_j", "intensity_g_per_kwh", "intensity_kind")),
    )
    jobs = sa.table("jobs", sa.column("id"), sa.column("spent_by_kind", JSON))
    weighted = samples.c.energy_j * samples.c.intensity_g_per_kwh
    sums = (
        sa.select(
            samples.c.job_id,
            samples.c.intensity_kind,
            sa.func.sum(samples.c.energy_j),
            sa.func.sum(weighted),
        )
        .where(samples.c.intensity_kind.is_not(None), samples.c.intensity_g_per_kwh.is_not(None))
        .group_by(samples.c.job_id, samples.c.intensity_kind)
        .order_by(samples.c.job_id, samples.c.intensity_kind)
    )
    found: dict[str, list[dict[str, object]]] = {}
    connection = op.get_bind()
    for job_id, kind, energy_j, weighted_j in connection.execute(sums):
        part = {
            "kind": kind,
            "energy_j": energy_j,
            "emissions_g": weighted_j / _JOULES_PER_KWH,
        }
        found.setdefault(job_id, []).append(part)
    for job_id, parts in found.items():
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(spent_by_kind=parts))


def downgrade() -> None:
    op.drop_column("jobs", "spent_by_kind")
