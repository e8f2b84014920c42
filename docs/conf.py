"""Sphinx: `make docs` builds this folder into `build/docs`; warnings are errors, and links inside are checked."""

from __future__ import annotations

import re
import sys
import tomllib
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "medunet"
author = "The medunet developers"
copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["build"]
nitpicky = True

# Links such as `file.md#a-heading`, in six levels of headings.
myst_heading_anchors = 6
myst_enable_extensions = ["deflist"]

# Two hyphens are an option, and no dash.
smartquotes = False
# Docstrings write names between single backquotes.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Types of other libraries and of medunet's inside have no page here.
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "pydata_sphinx_theme"
html_title = f"medunet {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_nav_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def click_text(app: Any, context: Any, lines: list[str]) -> None:
    """Help texts are plain text: `*.png` is no emphasis, `mask_` is no link, and examples keep their columns."""
    done: list[str] = []
    for example, group in groupby(lines, key=lambda line: line.startswith("| ")):
        if example:
            done += [".. code-block:: text", "", *(f"   {line[2:]}" for line in group), ""]
        else:
            done += [_default(line) if line.lstrip().startswith(("..", ":")) else _escaped(line) for line in group]
    lines[:] = done


def _escaped(line: str) -> str:
    """Stars and underscores as they are, but not between backquotes, where they need no care."""
    parts = line.split("`")
    parts[::2] = [part.replace("*", r"\*").replace("_", r"\_") for part in parts[::2]]
    return "`".join(parts).replace(r"\*\*Required\*\*", "**Required**")


def _default(line: str) -> str:
    """A default as it is typed."""
    return re.sub(r"``(?:PosixPath\()?'([^']*)'\)?``", r"``\1``", line)


def setup(app: Any) -> None:
    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", click_text)
