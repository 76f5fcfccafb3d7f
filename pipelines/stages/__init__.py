"""The stages as functions: a door opens one, the workflow runs them in line."""
