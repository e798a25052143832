"""The exception that ended an attempt.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("failure", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "failure")
