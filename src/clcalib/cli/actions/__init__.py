"""What the commands do: a file for each, imported when its command is called, as most of them need torch."""
