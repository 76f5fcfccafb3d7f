"""The registered model as MLflow serves it: seeds in, PNGs out. It is stored with the model.

It needs the package ddpm-pipeline installed. The answer to
`{"dataframe_records": [{"seed": 17}], "params": {"num_steps": 50}}` has a column `png`, each image a base64 string.
A seed gives the image that the sample stage gives for it with the same sampler.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from ddpm_core.api.loading import load
from ddpm_core.data.images import encode_png
from ddpm_core.diffusion.sampler_config import SamplerConfig


class DenoisingModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow has no types
    """DDIM from keyed noise."""

    def load_context(self, context: Any) -> None:
        """Read the artifacts `config` and `weights`."""
        self.model = load(str(Path(context.artifacts["weights"]).parent))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """An image a row.

        Args:
            model_input: a column `seed`, each in [0, 2^63).
            params: num_steps, the denoising steps (50).
        """
        sampler = SamplerConfig(name="ddim", num_steps=int((params or {}).get("num_steps", 50)))
        images = self.model.sample(model_input["seed"].tolist(), sampler=sampler)
        pngs = [base64.b64encode(encode_png(image)).decode() for image in images]
        return pd.DataFrame({"png": pngs})


mlflow.models.set_model(DenoisingModel())
