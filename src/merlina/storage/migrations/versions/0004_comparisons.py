"""Comparisons of base and tuned answers; the estimated memory of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not as a batch, which rebuilds the table on SQLite and restarts its numbers.
    op.add_column("jobs", sa.Column("memory_needed_mb", sa.Integer(), nullable=True))
    op.create_table(
        "comparisons",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("comparison_id", sa.String(length=64), nullable=False),
        sa.Column("job_number", sa.Integer(), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("tuned", sa.Text(), nullable=False),
        sa.Column("tuned_is_left", sa.Boolean(), nullable=False),
        sa.Column("winner", sa.String(length=5), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_number"], ["jobs.number"], name=op.f("fk_comparisons_job_number"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_comparisons")),
        sa.UniqueConstraint("comparison_id", name=op.f("uq_comparisons_comparison_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_comparisons_job_number_number"), "comparisons", ["job_number", "number"], unique=False)


def downgrade() -> None:
    op.drop_table("comparisons")
    op.drop_column("jobs", "memory_needed_mb")
