"""Batch generation on a calendar: when, who, and as which job."""
