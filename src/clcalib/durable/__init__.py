"""What a run needs to survive: its finished parts on the disk, a lock on the folder, and a polite end."""
