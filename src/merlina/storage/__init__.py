"""All SQL lives here: tables, migrations, and one module of queries for each thing stored."""
