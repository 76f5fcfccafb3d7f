"""The model as people use it: config with weights; loaded, sampled, measured, edited."""
