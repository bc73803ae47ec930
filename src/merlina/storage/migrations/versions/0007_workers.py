"""The identity of the worker of a job's current attempt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not as a batch, which rebuilds the table on SQLite and restarts its numbers.
    op.add_column("jobs", sa.Column("worker", sa.String(length=100), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "worker")
