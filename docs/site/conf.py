"""The pages of README and docs as a site: `make site`. Sphinx reads them as they stand; only their order is said here."""

from sphinx.application import Sphinx

project = "ddpm-pipeline"
author = "The authors of ddpm-pipeline"
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "infra/README.md"]
exclude_patterns = [".git", ".venv", "build"]
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "ddpm-pipeline"
html_copy_source = False
highlight_language = "none"

ORDER = {
    "Begin": [
        "README",
        "docs/first-hour",
        "docs/projects",
        "docs/concepts",
        "docs/going-well",
        "docs/report",
        "docs/data",
        "docs/store",
    ],
    "Choose": [
        "docs/choosing",
        "docs/samplers",
        "docs/sweeps",
        "docs/training",
        "docs/evaluation",
        "docs/performance",
        "docs/gpu",
        "docs/results",
    ],
    "Run": [
        "docs/troubleshooting",
        "docs/cluster",
        "infra/README",
        "docs/scale",
        "docs/mlflow",
        "docs/registry",
        "docs/schedule",
    ],
    "Look up": ["docs/comparison", "docs/paper", "docs/api", "docs/architecture", "CONTRIBUTING", "CHANGELOG"],
}
CALLED = {"README": "In short", "infra/README": "Containers, AWS, Kubernetes"}
"""Where a page's own title says too little beside others."""


def place(page: str) -> str:
    """A page as the tree names it."""
    return "self" if page == root_doc else f"/{page}"


def add_order(app: Sphinx, docname: str, source: list[str]) -> None:
    """The tree of pages, which GitHub would show as text."""
    if docname != root_doc:
        return
    for caption, pages in ORDER.items():
        lines = [f"{CALLED[page]} <{place(page)}>" if page in CALLED else place(page) for page in pages]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_order)
