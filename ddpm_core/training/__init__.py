"""The training state, step and loop."""
