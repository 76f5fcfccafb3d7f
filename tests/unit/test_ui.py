"""What `ui.py` passes on of MLflow's own server."""

import io

import pytest

from pipelines.tracking.ui import _pass_on


def test_an_error_of_the_server_is_shown_and_advice_by_its_own_flags_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    _pass_on(
        io.BytesIO(
            b"[MLflow] Security middleware enabled with default settings (localhost-only). To allow connections "
            b"from other hosts, use --host 0.0.0.0\nERROR: [Errno 98] address already in use\n"
        )
    )
    assert capsys.readouterr().err == "ERROR: [Errno 98] address already in use\n"
