"""Brings files from outside docs/ onto the site, and mends the links to them.

Links in docs/ are those that work in the repository: `../weights/README.md`. On the
site these files lie in the same folders, but beside the pages, not above them.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BROUGHT = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "weights/README.md",
    "kst_jax/data/demo/README.md",
    "studies/*/tables.md",
    "studies/*/figures/*.png",
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files from outside docs/, under their paths in the repository."""
    for pattern in BROUGHT:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **kwargs: Any) -> str:
    """Mends links between docs/ and the rest of the repository."""
    if Path(page.file.abs_src_path or "").is_relative_to(ROOT / "docs"):
        return re.sub(r"\]\(\.\./", "](", markdown)
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
