"""mkdocs hooks: show the pages of the repository's root (README, CONTRIBUTING, …) on the site, with working links."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Page of the repository -> its place on the site. mkdocs itself reads only docs/.
ROOT_PAGES = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE": "project/license.md",
}
_ON_SITE = {place: name for name, place in ROOT_PAGES.items()}
_CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`\n]*`|(?<!!)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", re.M | re.S)
_LINKED_IMAGE = re.compile(r"\[(!\[[^\]]*\]\([^)]*\))\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """List all decisions in the navigation, in the order of their numbers."""
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    for section in config.nav:
        if "Decisions" in section:
            section["Decisions"] = [f"decisions/{page}" for page in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages to the site."""
    for name, place in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if name == "LICENSE":
            text = f"# License\n\n{text}"
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links between the root's pages and docs/; a link to source code keeps its text only."""
    place = page.file.src_uri
    source = _ON_SITE.get(place, f"docs/{place}")

    def rewritten(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in ROOT_PAGES:
            goal = ROOT_PAGES[path]
        elif path.startswith("docs/"):
            goal = path.removeprefix("docs/")
        else:
            return text
        return f"[{text}]({posixpath.relpath(goal, posixpath.dirname(place) or '.')}{anchor})"

    return _CODE_OR_LINK.sub(rewritten, _LINKED_IMAGE.sub(rewritten, markdown))
