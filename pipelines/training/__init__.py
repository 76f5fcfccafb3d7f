"""Ray Train's side of a training run: trainer, workers, coordinator, validation."""
