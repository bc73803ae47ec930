"""The tables of the database. Each change needs a migration in `migrations/versions/`."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# The jobs table is the queue: `state` queued, by `priority`, then `number`. Times are epoch seconds.
jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(64), nullable=False, unique=True),
    Column("state", String(20), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("config", JSON, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("output_name", Text, nullable=False),
    Column("target_dir", Text, nullable=False),
    Column("dataset_file", Text),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("attempt_seen", Integer, nullable=False, server_default="0"),
    Column("gpus", JSON(none_as_null=True)),
    Column("progress", Float, nullable=False, server_default="0"),
    Column("step", Integer),
    Column("total_steps", Integer),
    Column("loss", Float),
    Column("eval_loss", Float),
    Column("learning_rate", Float),
    Column("gpu_memory", Float),
    Column("last_checkpoint", Integer),
    Column("error", Text),
    Column("output_dir", Text),
    Column("final_metrics", JSON(none_as_null=True)),
    Column("wandb_url", Text),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("stop_requested_at", Float),
    Column("pause_requested_at", Float),
    # The job that preempts this one, which then returns to the queue by itself.
    Column("preempted_by", String(64)),
    Column("preemptible", Boolean, nullable=False, server_default=false()),
    # The estimated peak memory on the training device, in MiB.
    Column("memory_needed_mb", Integer),
    # The identity of the current attempt's worker, in case its run folder is gone.
    Column("worker", String(100)),
    Column("deleting", Boolean, nullable=False, server_default=false()),
    Column("last_seq", Integer, nullable=False, server_default="0"),
    Column("log_offset", Integer, nullable=False, server_default="0"),
    # The number of the job's rows in `metrics`: counting a million rows takes too long.
    Column("metric_rows", Integer, nullable=False, server_default="0"),
    # The number of commands that changed the job: of two decided on the same row, the second is refused.
    Column("operations", Integer, key="command_count", nullable=False, server_default="0"),
    # The number of lines of the run's event log that could not be applied.
    Column("skipped_lines", Integer, nullable=False, server_default="0"),
    Index(None, "state", "priority", "number"),
    sqlite_autoincrement=True,
)

Index("ix_jobs_deleting", jobs.c.deleting, sqlite_where=text("deleting = 1"), postgresql_where=text("deleting"))

metrics = Table(
    "metrics",
    metadata,
    Column("job_number", Integer, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("timestamp", Float, nullable=False),
    # The column keeps its original name in the database.
    Column("figures", JSON, key="metrics", nullable=False),
    # Whether evaluation metrics are included: those rows are few, and downsampling must keep them.
    Column("evaluated", Boolean, nullable=False, server_default=false()),
    sqlite_with_rowid=False,
)
Index(
    "ix_metrics_evaluated",
    # With `evaluated`, although it is always true here, SQLite prefers this index to the primary key.
    metrics.c.job_number,
    metrics.c.evaluated,
    metrics.c.step,
    sqlite_where=text("evaluated = 1"),
    postgresql_where=text("evaluated"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("dataset_id", String(64), primary_key=True),
    Column("filename", Text, nullable=False),
    Column("file_format", String(20), nullable=False),
    Column("size", Integer, nullable=False),
    Column("total_rows", Integer, nullable=False),
    Column("created_at", Float, nullable=False, index=True),
)

# Two answers to one prompt; `winner` is the vote: base, tuned or tie. Times are epoch seconds.
comparisons = Table(
    "comparisons",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("comparison_id", String(64), nullable=False, unique=True),
    Column("job_number", Integer, ForeignKey("jobs.number", ondelete="CASCADE"), nullable=False),
    Column("messages", JSON, nullable=False),
    Column("base", Text, nullable=False),
    Column("tuned", Text, nullable=False),
    Column("tuned_is_left", Boolean, nullable=False),
    Column("winner", String(5)),
    Column("created_at", Float, nullable=False),
    Index(None, "job_number", "number"),
    sqlite_autoincrement=True,
)
