"""Objects that attempts are about to store; files of checkpoints that are of use to their own job
alone; checkpoints that were deleted.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
JOBS = sa.table("jobs", sa.column("id"), sa.column("finished_at"))
CHECKPOINTS = sa.table(
    "checkpoints", sa.column("job_id"), sa.column("prefix"), sa.column("state_files", JSON)
)
DISCARDED = sa.table("discarded", sa.column("key"), sa.column("is_folder"), sa.column("due_at"))
STATE_FILES = ("optimizer.safetensors", "random.safetensors", "best.safetensors")


def upgrade() -> None:
    with op.batch_alter_table("discarded") as table:
        table.alter_column("due_at", existing_type=MOMENT, nullable=True)
        table.add_column(sa.Column("job_id", sa.String(length=40)))
        table.add_column(sa.Column("attempt", sa.Integer()))
    op.add_column(
        "checkpoints",
        sa.Column("state_files", JSON, nullable=False, server_default=sa.text("'[]'")),
    )
    op.add_column("checkpoints", sa.Column("deleted_at", MOMENT))
    is_set = sa.text("deleted_at IS NOT NULL")
    op.create_index(
        "ix_checkpoints_deleted_at",
        "checkpoints",
        ["deleted_at"],
        postgresql_where=is_set,
        sqlite_where=is_set,
    )
    # nothing goes on from the checkpoints of jobs that have ended
    has_ended = JOBS.c.finished_at.is_not(None)
    for name in STATE_FILES:
        state = sa.select(CHECKPOINTS.c.prefix + f"/{name}", sa.false(), JOBS.c.finished_at)
        of_ended = state.join_from(CHECKPOINTS, JOBS, JOBS.c.id == CHECKPOINTS.c.job_id)
        op.execute(
            DISCARDED.insert().from_select(
                ["key", "is_folder", "due_at"], of_ended.where(has_ended)
            )
        )
    ended = sa.select(JOBS.c.id).where(has_ended)
    op.execute(
        CHECKPOINTS.update()
        .where(CHECKPOINTS.c.job_id.not_in(ended))
        .values(state_files=list(STATE_FILES))
    )


def downgrade() -> None:
    # what is there of attempts under way was never removed before this revision
    op.execute("DELETE FROM discarded WHERE due_at IS NULL")
    op.execute("DELETE FROM checkpoints WHERE deleted_at IS NOT NULL")
    op.drop_index("ix_checkpoints_deleted_at", table_name="checkpoints")
    op.drop_column("checkpoints", "deleted_at")
    op.drop_column("checkpoints", "state_files")
    with op.batch_alter_table("discarded") as table:
        table.drop_column("attempt")
        table.drop_column("job_id")
        table.alter_column("due_at", existing_type=MOMENT, nullable=False)
