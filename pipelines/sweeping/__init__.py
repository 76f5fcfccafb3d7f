"""Sweeps: the space that is searched, the trials, their figures on record, and how they are ranked."""
