"""Targets for coverage-guided fuzzing: one function from bytes for each reader.  See ``run.py``."""
