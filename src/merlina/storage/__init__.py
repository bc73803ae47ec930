"""All SQL (tables, migrations, and one module of queries per table), and the files of saved configurations."""
