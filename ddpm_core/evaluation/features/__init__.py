"""What images are compared by: a network that turns each into a vector."""
