"""The intensity that a sample was first accounted at, where that was replaced.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("energy_samples", sa.Column("revised_from", JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("energy_samples", "revised_from")
