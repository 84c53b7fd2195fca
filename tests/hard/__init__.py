"""Batteries that try to break the package: small in every test run, in full with ``CLCALIB_HARD=1``.

A battery takes its size from :func:`tests.hard.figures.size` and reports what it counted with
:func:`tests.hard.figures.record`, which appends to the file named by ``CLCALIB_FIGURES``.
"""
