"""Charts as inline SVG, made of text alone: no script, colours by CSS classes, every text escaped."""
