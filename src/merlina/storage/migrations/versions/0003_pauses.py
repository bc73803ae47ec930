"""Jobs that pause and are preempted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not as a batch, which rebuilds the table on SQLite and restarts its numbers.
    op.add_column("jobs", sa.Column("pause_requested_at", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("preempted_by", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("preemptible", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    for name in ("preemptible", "preempted_by", "pause_requested_at"):
        op.drop_column("jobs", name)
