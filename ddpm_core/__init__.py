"""The library: DDPM's mathematics, network, data, training and evaluation, without Ray and MLflow."""

__version__ = "0.1.0"
