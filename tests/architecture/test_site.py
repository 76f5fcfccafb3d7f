"""README and docs as a site: every page is in its tree, every link and picture leads somewhere."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(place: Path, source: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    words = [
        "-b",
        "html",
        "-c",
        str(source / "docs/site"),
        "-W",
        "--keep-going",
        "-q",
        "-E",
        "-d",
        str(place / "cache"),
    ]
    command = [sys.executable, "-m", "sphinx", *words, str(source), str(place / "html")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path.relative_to(tmp_path / "html").with_suffix("") for path in (tmp_path / "html").rglob("*.html")}
    written = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "docs").glob("*.md")}
    assert written <= pages


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    for name in ("docs/site/conf.py", "README.md", "docs/going-well.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    page = tmp_path / "docs/going-well.md"
    page.write_text(page.read_text() + "\n[nowhere](going-well.md#no-such-heading), [nothing](no-such-page.md)\n")
    done = build(tmp_path, tmp_path)
    assert done.returncode == 1
    assert "'no-such-heading'" in done.stderr
    assert "no-such-page.md" in done.stderr
