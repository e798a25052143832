"""Objects that no row names any more, until they are removed; which checkpoints are kept for good.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "discarded",
        sa.Column("key", sa.String(length=512), nullable=False),
        sa.Column("is_folder", sa.Boolean(), nullable=False),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_discarded"),
    )
    op.create_index("ix_discarded_due_at", "discarded", ["due_at"])
    # what is there already stays: nobody knows why it was written
    op.add_column(
        "checkpoints",
        sa.Column("is_milestone", sa.Boolean(), nullable=False, server_default=sa.true()),
    )
    for column in ("expires_at", "deleted_at"):
        is_set = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"ix_files_{column}",
            "files",
            [column],
            postgresql_where=is_set,
            sqlite_where=is_set,
        )


def downgrade() -> None:
    op.drop_index("ix_files_deleted_at", table_name="files")
    op.drop_index("ix_files_expires_at", table_name="files")
    op.drop_column("checkpoints", "is_milestone")
    op.drop_table("discarded")
