"""Side by side with other quantization libraries: adapters that run in venvs of their own, grid, harness, page."""
