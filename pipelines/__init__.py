"""The doors: every stage as a command, orchestrated by Ray and tracked in MLflow."""
