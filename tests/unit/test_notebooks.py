"""The notebooks of examples/ that need no Ray, cell by cell: small enough for a test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import written_run
from matplotlib import pyplot

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def no_screen() -> Iterator[None]:
    backend = matplotlib.get_backend()
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(backend)


def execute(name: str, changes: dict[str, str]) -> dict[str, object]:
    """What the code cells of a notebook leave behind, after changes to single lines."""
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for old, new in changes.items():
        assert sum(cell.count(f"{old}\n") for cell in code) == 1, old
        code = [cell.replace(f"{old}\n", f"{new}\n") for cell in code]
    names: dict[str, object] = {}
    for cell in code:
        exec(cell, names)
    return names


def test_a_command_draws_in_a_notebooks_shell() -> None:
    """Which names a backend that another Python may not have."""
    env = {**os.environ, "MPLBACKEND": "one_of_another_python"}
    code = "import pipelines, ddpm_core.evaluation.plots"
    subprocess.run([sys.executable, "-c", code], env=env, cwd=EXAMPLES.parent, check=True)


def test_what_the_papers_notebook_asserts_holds_without_training() -> None:
    names = execute("paper.ipynb", {"T = 1000": "T = 50", "STEPS = 1000": "STEPS = 5"})
    assert len(names["losses"]) == 5  # type: ignore[arg-type]


def test_editing_runs_on_a_model_with_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written_run.MODEL
    monkeypatch.setattr(written_run, "MODEL", replace(model, unet=replace(model.unet, num_classes=3)))
    monkeypatch.setenv("DDPM_RUN", written_run.write_run(str(tmp_path), steps=(1,)))
    assert execute("editing.ipynb", {})["wanted"] == [0, 1, 2]
