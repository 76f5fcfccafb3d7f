"""HTML pages from templates; whatever came from outside is escaped, and what a template misses is an error."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ddpm_core.evaluation.figures import number

_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters.update(
    count=lambda value: f"{value:,}", number=number, sentence=lambda line: line[:1].upper() + line[1:] + "."
)


def render(template: str, **content: Any) -> str:
    """The page of a template in templates/."""
    return _PAGES.get_template(template).render(**content)


def themed(chart: Callable[..., bytes]) -> dict[str, str]:
    """A chart for a light and for a dark page."""
    return {theme: png_uri(chart(dark=theme == "dark")) for theme in ("light", "dark")}


def png_uri(data: bytes) -> str:
    """A picture that the page carries itself."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def webp_uri(image: Image.Image) -> str:
    """Likewise, of a large one."""
    out = io.BytesIO()
    image.save(out, format="WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
