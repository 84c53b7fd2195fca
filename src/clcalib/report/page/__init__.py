"""One self-contained page about a run, and one that puts several runs side by side."""
