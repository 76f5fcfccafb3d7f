"""Figures that say how good the samples are."""
