"""What is measured of images, by parallel tasks: the same figures whoever did which part."""
