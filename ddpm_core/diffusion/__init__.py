"""The paper's mathematics: schedules, process, losses, samplers."""
