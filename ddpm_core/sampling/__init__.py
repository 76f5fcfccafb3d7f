"""Seeds in, images out: noise and batches by seed. The samplers themselves are in `diffusion/samplers.py`."""
