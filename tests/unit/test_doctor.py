"""What doctor finds, each planted."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddpm_core import storage
from pipelines import doctor


def found(store: str) -> dict[str, tuple[str, str]]:
    """Grade and words, by what was examined."""
    told = doctor.run(doctor.DoctorArgs(store=store)).metrics["findings"]
    return {each["what"]: (each["grade"], each["said"]) for each in told}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_on_a_machine_where_all_is_well_nothing_is_left(tmp_path: Path) -> None:
    outcome = doctor.run(doctor.DoctorArgs(store=str(tmp_path / "store")))
    assert (outcome.exit_code, list(outcome.made)) == (0, ["all well"])
    assert list((tmp_path / "store").iterdir()) == []
    assert {"python", "machine", "gpu", "disk", "temporary", "store", "clock", "mlflow", "ray"} <= found(
        str(tmp_path)
    ).keys()


def test_a_store_on_s3_is_tried_with_its_conditions(bucket: str) -> None:
    store = f"s3://{bucket}/ddpm"
    assert found(store)["store"][0] == "ok"
    assert list(storage.walk(store)) == []
    grade, said = found(f"s3://{bucket}-is-none/ddpm")["store"]
    assert (grade, "bucket" in said) == ("FAIL", True)


def test_a_store_that_heeds_no_conditions_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(uri: str, data: bytes) -> bool:
        storage.write_bytes(uri, data)
        return True

    monkeypatch.setattr("pipelines.doctor.storage.create_bytes", create)
    outcome = doctor.run(doctor.DoctorArgs(store=str(tmp_path)))
    assert (outcome.exit_code, outcome.made["to mend"]) == (1, "store")
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_late_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: time.time() + 300, perf_counter=time.perf_counter))
    grade, said = found(str(tmp_path))["clock"]
    assert (grade, said.split(";")[0]) == ("FAIL", "+300 s beside the store's")


def test_a_store_whose_name_means_something_in_a_uri_has_an_mlflow(tmp_path: Path) -> None:
    store = tmp_path / "50%20off"
    store.mkdir()
    assert found(str(store))["mlflow"][1].endswith("is made by the first command")
    (store / "mlflow.db").write_bytes(b"damaged " * 100)
    assert found(str(store))["mlflow"][0] == "FAIL"


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_for_ray_that_cannot_be_written_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/tmp/ddpm/ray")
    monkeypatch.setattr("pipelines.cluster.address.os.access", lambda path, mode: str(path) not in "/tmp/ddpm")
    assert found(str(tmp_path))["disk"] == (
        "FAIL",
        "Ray cannot start in /tmp/ddpm/ray: it cannot be written; set RAY_TMPDIR to another folder",
    )


def test_a_folder_for_ray_that_is_missing_is_made_by_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/ddpm-not-there")
    assert found(str(tmp_path))["disk"][0] in ("ok", "note")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:1", "mlflow"),
        ("RAY_ADDRESS", "127.0.0.1:1", "ray"),
        ("RAY_TMPDIR", "/" + "long" * 20, "disk"),
    ],
)
def test_what_does_not_answer_is_one_line(
    name: str, value: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    grade, said = found(str(tmp_path))[what]
    assert (grade, "\n" in said, name in said or "MLflow" in said) == ("FAIL", False, True)


def test_a_gpu_that_torch_cannot_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "pipelines.doctor.shutil.which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None
    )
    told = found(str(tmp_path))
    assert (told["gpu"][0], told["compiler"][0]) == ("FAIL", "note")
