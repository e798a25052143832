"""What a report needs beside samples: overhead times, whose energy was metered, full fine-tuning's
measured cost.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("full_cost", JSON, nullable=True))
    op.add_column("attempts", sa.Column("attribution", sa.String(length=40), nullable=True))
    op.create_table(
        "overheads",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_overheads_job_id"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "kind", "started_at", name="pk_overheads"),
    )


def downgrade() -> None:
    op.drop_table("overheads")
    op.drop_column("attempts", "attribution")
    op.drop_column("jobs", "full_cost")
