"""Complete configs by name."""
