"""Weights and config as an MLflow model without pickle, and without this machine's paths in it."""

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ddpm_core
from ddpm_core.interop.model_folder import CONFIG, WEIGHTS
from pipelines.tracking.store import is_server, quiet_warnings

if TYPE_CHECKING:
    from pipelines.tracking.tracker import Tracker

_CODE = Path(__file__).with_name("serving_model.py")
_REQUIREMENTS = ("mlflow", "torch", "safetensors", "numpy", "pandas", "pillow")
# The package itself is no requirement: it is on no index, where a stranger could take its name.
_README = """# {name}

A denoising diffusion model (arXiv 2006.11239): `weights.safetensors` are the averaged weights, `config.json` says
what they are. There is no pickle in it.

Serving needs the repository that made it installed (`pip install -e .` in a checkout; package ddpm-pipeline {version}):

    mlflow models serve -m models:/{name}@champion --env-manager local

Send `{{"dataframe_records": [{{"seed": 17}}], "params": {{"num_steps": 50}}}}`; the answer has a PNG (base64) a seed.
"""


class LoggedModel(NamedTuple):
    """MLflow's id of a logged model, and the URI from which it is registered."""

    model_id: str
    source: str


def log_model(tracker: "Tracker", run_id: str, *, name: str, weights: Path, config: Mapping[str, Any]) -> LoggedModel:
    """Upload the model as an output of a run.

    Done by hand where mlflow.pyfunc.log_model would do it: that one works on a global store, and records in MLmodel the
    absolute paths of the code and of the files.
    """
    from mlflow.entities import LoggedModelOutput

    client = tracker.client
    model = client.create_logged_model(tracker.experiment_id, name, run_id, model_type="ddpm")
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder), model, run_id, name, weights, config)
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    # A server refuses local paths; a client without one would look `models:/` up in MLflow's global store.
    source = f"models:/{model.model_id}" if is_server(tracker.uri) else model.artifact_location
    return LoggedModel(model.model_id, source)


def _save(folder: Path, model: Any, run_id: str, name: str, weights: Path, config: Mapping[str, Any]) -> None:
    with quiet_warnings():
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.models import Model

        shutil.copyfile(weights, folder / WEIGHTS)  # MLflow refuses links
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        mlflow.pyfunc.save_model(
            path=str(folder / "model"),
            python_model=str(_CODE),
            artifacts={"weights": str(folder / WEIGHTS), "config": str(folder / CONFIG)},
            signature=_signature(),
            input_example=(pd.DataFrame({"seed": [17]}), {"num_steps": 50}),
            pip_requirements=[f"{each}=={_public_version(each)}" for each in _REQUIREMENTS],
            mlflow_model=Model(artifact_path=name, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id),
        )
    readme = _README.format(name=name, version=ddpm_core.__version__)
    (folder / "model" / "README.md").write_text(readme)
    _forget_paths(folder / "model")


def _public_version(package: str) -> str:
    # Without a local part such as +cpu, which no index has.
    return importlib.metadata.version(package).partition("+")[0]


def _forget_paths(folder: Path) -> None:
    from mlflow.models import Model

    model = Model.load(str(folder))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = _CODE.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(folder / "MLmodel"))


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("long", "seed")]),
        outputs=Schema([ColSpec("string", "png")]),
        params=ParamSchema([ParamSpec("num_steps", "long", 50)]),
    )
