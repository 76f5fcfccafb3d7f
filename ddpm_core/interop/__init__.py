"""Trained networks in the form of other programs: read from it, written to it, none of them imported."""
