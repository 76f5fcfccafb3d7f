"""The registered model as MLflow serves it: seeds in, PNGs out. It is stored with the model.

It needs the package ddpm-pipeline installed. The answer to
`{"dataframe_records": [{"seed": 17}], "params": {"num_steps": 50}}` has a column `png`, each image a base64 string.
A seed gives the image that the sample stage gives for it with the same sampler.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from safetensors.torch import load_file

from ddpm_core.data.images import encode_png
from ddpm_core.diffusion.samplers import SamplerConfig
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.generate import generate
from ddpm_core.training.build import build_network, image_shape
from ddpm_core.training.state import load_network
from pipelines.naming import seeded_process

BATCH_SIZE = 64


class DenoisingModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow has no types
    """DDIM from keyed noise."""

    def load_context(self, context: Any) -> None:
        """Read the artifacts `config` and `weights`."""
        self.config = json.loads(Path(context.artifacts["config"]).read_text())
        self.network = build_network(self.config)
        load_network(self.network, load_file(context.artifacts["weights"]))
        self.network.eval().requires_grad_(False)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """An image a row.

        Args:
            model_input: a column `seed`, each in [0, 2^63).
            params: num_steps, the denoising steps (50).
        """
        sampler = SamplerConfig(name="ddim", num_steps=int((params or {}).get("num_steps", 50)))
        pngs: list[str] = []
        for first in range(0, len(model_input), BATCH_SIZE):
            seeds = torch.tensor(model_input["seed"].iloc[first : first + BATCH_SIZE].tolist(), dtype=torch.int64)
            p = seeded_process(self.network, self.config, seeds, SampleConfig())
            images = generate(p, sampler, seeds, image_shape(self.config))
            pngs += [base64.b64encode(encode_png(image.permute(1, 2, 0).numpy())).decode() for image in images]
        return pd.DataFrame({"png": pngs})


mlflow.models.set_model(DenoisingModel())
