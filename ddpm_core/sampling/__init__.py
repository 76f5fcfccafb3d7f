"""Seeds in, images out."""
