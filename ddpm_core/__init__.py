"""The library: DDPM's mathematics, network, data, training and evaluation, without Ray and MLflow."""
