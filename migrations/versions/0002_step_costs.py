"""What jobs measured in their first steps: seconds and joules per trained token.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "step_costs",
        sa.Column("model", sa.String(length=512), nullable=False),
        sa.Column("hardware", sa.String(length=255), nullable=False),
        sa.Column("rho", sa.Double(), nullable=False),
        sa.Column("s_per_token", sa.Double(), nullable=False),
        sa.Column("j_per_token", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("model", "hardware", "rho", name="pk_step_costs"),
    )


def downgrade() -> None:
    op.drop_table("step_costs")
