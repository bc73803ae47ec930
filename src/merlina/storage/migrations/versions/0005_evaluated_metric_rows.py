"""A column that states whether a metric row holds an evaluation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("metrics", sa.Column("evaluated", sa.Boolean(), server_default=sa.false(), nullable=False))
    # The cast to text works in SQLite and PostgreSQL; the keys of the object are names of metrics.
    op.execute("""UPDATE metrics SET evaluated = true WHERE CAST(figures AS TEXT) LIKE '%"eval_%'""")
    op.create_index(
        "ix_metrics_evaluated",
        "metrics",
        ["job_number", "evaluated", "step"],
        unique=False,
        sqlite_where=sa.text("evaluated = 1"),
        postgresql_where=sa.text("evaluated"),
    )


def downgrade() -> None:
    op.drop_index("ix_metrics_evaluated", table_name="metrics")
    op.drop_column("metrics", "evaluated")
