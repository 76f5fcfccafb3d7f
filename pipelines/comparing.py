"""Evaluations side by side: one page, and the figures that all of them have."""

import base64
from collections.abc import Mapping

from ddpm_core import storage
from ddpm_core.artifacts.report import read_report, write_report
from ddpm_core.errors import InputError
from ddpm_core.evaluation.comparison import Compared, compare, render_comparison
from ddpm_core.serialization import to_json
from pipelines.naming import digest
from pipelines.stages.evaluate import Evaluated


def write_comparison(store: str, judged: Mapping[str, Evaluated]) -> tuple[str, tuple[Compared, ...]]:
    """Write the page of some models' evaluations; its URI, and its rows.

    Args:
        judged: by the name that each model is shown under.

    Raises:
        InputError: in one line, if they were measured against different references, or on other seeds.
    """
    (first_name, first), *others = judged.items()
    for name, each in others:
        for what, one, other in (("against", first.reference, each.reference), ("on seeds", first.seeds, each.seeds)):
            if one != other:
                raise InputError(
                    f"{first_name} was measured {what} {one}, {name} {what} {other}; expected the same: name a --dataset"
                )
    rows = compare([each.figures for each in judged.values()])
    grids = {name: _grid(each.report_uri) for name, each in judged.items()}
    uri = storage.join(store, "reports", f"compare-{digest([each.report_uri for each in judged.values()])}")
    html = render_comparison(" against ".join(judged), list(judged), rows, grids)
    facts = {"models": list(judged), "reports": [each.report_uri for each in judged.values()]}
    return write_report(uri, [to_json(row) for row in rows], facts, html, {}), rows


def _grid(report_uri: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(read_report(report_uri).pngs['generated.png']).decode()}"
