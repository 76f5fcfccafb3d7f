"""A ranking as text: in Markdown for MLflow, and of the paper's Table 2 in the paper's order, beside its figures."""

from collections.abc import Sequence

from pipelines.progress import span
from pipelines.recipes.paper import TABLE_2
from pipelines.recipes.spaces import SPACES
from pipelines.sweeping.ranking import Ranked

_ROWS = 12
_FIELDS = tuple(SPACES["paper-table-2"])


def in_markdown(ranking: Sequence[Ranked], verdict: str) -> str:
    """What MLflow shows as description of a sweep's run: the verdict, and the best of the ranking."""
    rows = [f"| {each.number} | {each.words} | {each.step:,} | {each.figures} |" for each in ranking[:_ROWS]]
    more = [f"\nand {len(ranking) - _ROWS:,} more: see sweep.html among the artifacts"] if len(ranking) > _ROWS else []
    return "\n".join([f"{verdict}\n", "| trial | setting | step | figures |", "|---|---|---|---|", *rows, *more])


def beside_the_paper(ranking: Sequence[Ranked]) -> list[str]:
    """A line a cell: what was found, what its training took, and what the paper found on CIFAR-10; none for another sweep."""
    rows = {_cell(row): row for row in ranking if set(row.setting) == set(_FIELDS)}
    if len(rows) < len(ranking):
        return []
    lines = [_line(cell, rows[cell], printed) for cell, printed in TABLE_2.items() if cell in rows]
    return ["the paper's Table 2 (prediction, objective, variance), here and on CIFAR-10 there:", *lines]


def _cell(row: Ranked) -> tuple[str, str, str]:
    prediction, objective, variance = (str(row.setting.get(path, "")) for path in _FIELDS)
    return prediction, objective, variance.partition("_")[0]


def _line(cell: tuple[str, str, str], row: Ranked, printed: str) -> str:
    return f"  {' '.join(cell):20}  {row.figures}; trained {span(row.train_s)}  |  {printed}"
