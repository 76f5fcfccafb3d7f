"""The report's figures, each with what it was measured on."""

from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.evaluation.bits_per_dim import BoundStats
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.report_page import MetricRow


def distance_rows(features: Features, metrics: dict[str, float], index: DatasetIndex) -> tuple[MetricRow, ...]:
    """The distance, its floor, and where they were measured on unequal counts the distance that compares with the floor."""

    def row(count: float, what: str, value: float, note: str = "", *, headline: bool = True) -> MetricRow:
        of = f"{count:,.0f} {what} against {index.num_samples('train'):,} training images"
        if count <= metrics["num_dimensions"]:
            few = f"fewer images than the features' {metrics['num_dimensions']:,.0f} dimensions: much of it is bias"
            note = f"{note}; {few}" if note else few
        return MetricRow(name=features.figure(int(count)), of=of, value=value, note=note, headline=headline)

    rows = [row(metrics["num_generated"], "generated images", metrics[features.figure(int(metrics["num_generated"]))])]
    if "floor" in metrics:
        if metrics["num_floor"] < metrics["num_generated"]:
            note = f"as many as there are {index.final_split} images: fewer images raise the figure"
            rows.append(row(metrics["num_floor"], "generated images", metrics["same_n"], note, headline=False))
        note = "the floor: what real images reach that the model has not seen" + _chosen_by(index)
        rows.append(row(metrics["num_floor"], f"{index.final_split} images", metrics["floor"], note))
    return tuple(rows)


def bound_rows(bound: BoundStats | None, index: DatasetIndex) -> tuple[MetricRow, ...]:
    """Bits/dim and its two parts."""
    if bound is None:
        return ()
    of = f"{bound.count:,} {index.final_split} images"
    error = f"an upper bound; standard error {bound.standard_error:.2g}" + _chosen_by(index)
    return (
        MetricRow(name="bits_per_dim", of=of, value=bound.bits_per_dim, note=error),
        MetricRow(name="rate", of=of, value=bound.rate, note="bits/dim of all steps but the last", headline=False),
        MetricRow(
            name="distortion",
            of=of,
            value=bound.distortion,
            note=f"bits/dim of the last step; RMSE {bound.rmse[0]:.3g} of 0..255",
            headline=False,
        ),
    )


def _chosen_by(index: DatasetIndex) -> str:
    """What to say where validation stands in for the test."""
    return (
        "" if index.final_split == "test" else "; this dataset has no test: checkpoints may have been chosen by these"
    )
