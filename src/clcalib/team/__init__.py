"""Who works on a run: shards of the images, dealt to workers, and what they exchange."""
