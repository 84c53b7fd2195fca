"""Elementwise passes in C++, built on the user's machine when first needed, and the random masks that they draw."""
