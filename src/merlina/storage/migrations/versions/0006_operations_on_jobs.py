"""The number of requests that changed a job and of skipped lines in its log; an index of jobs to delete."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not as a batch, which rebuilds the table on SQLite and restarts its numbers.
    op.add_column("jobs", sa.Column("operations", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("skipped_lines", sa.Integer(), server_default="0", nullable=False))
    # The server numbers what it does to a job without a worker; jobs that ended without an event have no number yet.
    op.execute("UPDATE jobs SET last_seq = 1 WHERE last_seq = 0 AND state IN ('cancelled', 'failed', 'stopped')")
    op.create_index(
        "ix_jobs_deleting",
        "jobs",
        ["deleting"],
        unique=False,
        sqlite_where=sa.text("deleting = 1"),
        postgresql_where=sa.text("deleting"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_deleting", table_name="jobs")
    op.drop_column("jobs", "skipped_lines")
    op.drop_column("jobs", "operations")
