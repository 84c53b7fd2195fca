"""How the database of a sweep came to its tables, step by step, for Alembic."""
