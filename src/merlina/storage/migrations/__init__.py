"""Alembic migrations: one file per change of the tables, run when the server starts."""
