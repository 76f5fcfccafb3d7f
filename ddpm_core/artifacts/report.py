"""The Report artifact: a page, its pictures as PNG, and report.json, which says that the report is whole.

    <report>/report.html *.png report.json

Pages and pictures go first, report.json (with the sha256 of each file) last: no report.json, no report.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import InputError, MissingError

FORMAT_VERSION = 2
PAGE_NAME = "report.html"
MARKER_NAME = "report.json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation found."""

    uri: str
    figures: list[dict[str, Any]]
    """Each with its name, its value, what it was measured on and its interval, as JSON; the one that ranks models first."""
    facts: dict[str, Any]
    """What was measured, and against what."""
    html: str = field(repr=False)
    """The whole page in one file."""
    pngs: dict[str, bytes] = field(repr=False)
    """Pictures by file name."""


def write_report(
    uri: str, figures: list[dict[str, Any]], facts: dict[str, Any], html: str, pngs: dict[str, bytes]
) -> str:
    """Write a report in place of any that stood there.

    The old report.json goes first, so that at no time old figures stand beside new pictures.

    Args:
        figures: JSON; a NaN or an infinity is refused.
        facts: JSON, as well.
        pngs: pictures by file name, each NAME.png.

    Returns:
        URI of the page.

    Raises:
        InputError: if a figure is not finite.
    """
    assert all(name.endswith(".png") and "/" not in name for name in pngs), sorted(pngs)
    files = {**pngs, PAGE_NAME: html.encode()}
    marker = {
        "format_version": FORMAT_VERSION,
        "figures": figures,
        **facts,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    encoded = json.dumps(marker, indent=2, allow_nan=False).encode()
    storage.delete(storage.join(uri, MARKER_NAME))
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    storage.write_bytes(storage.join(uri, MARKER_NAME), encoded)
    return storage.join(uri, PAGE_NAME)


def read_report(uri: str) -> Report:
    """Read a report and verify each file.

    Raises:
        MissingError: if no complete report is there.
        InputError: if a file does not have its recorded sha256, or the format is newer than this code.
    """
    marker = _read_marker(uri)
    files = {name: _read_verified(uri, name, expected) for name, expected in marker["sha256"].items()}
    html = files.pop(PAGE_NAME).decode()
    return Report(uri=uri, figures=marker["figures"], facts=_facts(marker), html=html, pngs=files)


def read_findings(uri: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The figures and facts alone. Errors as in `read_report`."""
    marker = _read_marker(uri)
    return marker["figures"], _facts(marker)


def _facts(marker: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in marker.items() if name not in ("format_version", "figures", "sha256")}


def _read_marker(uri: str) -> dict[str, Any]:
    try:
        marker: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, MARKER_NAME)))
    except FileNotFoundError:
        raise MissingError(f"no report at {uri}; expected a folder with {MARKER_NAME}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{uri}/{MARKER_NAME} is not JSON ({error}); evaluate again") from None
    if marker["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{uri} has format_version {marker['format_version']}; this code reads up to {FORMAT_VERSION}: update it"
        )
    if marker["format_version"] == 1:  # figures by name, and facts among them, without intervals
        values = marker["figures"]
        facts = {name: value for name, value in values.items() if not isinstance(value, float)}
        figures = [{"name": name, "value": value} for name, value in values.items() if isinstance(value, float)]
        marker = {**marker, **facts, "figures": figures}
    return marker


def _read_verified(uri: str, name: str, expected: str) -> bytes:
    if "/" in name:  # a stranger's report.json must not lead out of its folder
        raise InputError(f"{uri}/{MARKER_NAME} names the file {name!r}; expected a plain file name")
    data = storage.read_bytes(storage.join(uri, name))
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise InputError(f"{uri}/{name}: sha256 is {found}, {MARKER_NAME} says {expected}; evaluate again")
    return data
