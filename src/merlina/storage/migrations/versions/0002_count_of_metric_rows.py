"""The number of metric rows per job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("metric_rows", sa.Integer(), server_default="0", nullable=False))
    op.execute("UPDATE jobs SET metric_rows = (SELECT count(*) FROM metrics WHERE metrics.job_number = jobs.number)")


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("metric_rows")
