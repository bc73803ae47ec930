"""All SQL: tables, migrations, and one module of queries per table. Saved configurations are files (`configs`)."""
