"""MkDocs hooks. The site has the folders of the repository, so links between pages work on GitHub and in the site."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

PAGES = ("*.md", "docs/*.md", "docs/images/*", "docs/scripts/*.js", "ds_configs/*", "examples/*")
PAGES += ("benchmarks/*.md", "benchmarks/plans/*", "benchmarks/results/*")
REQUEST = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?https?:[^>]*>")
MATH = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Takes the pages by their paths in the repository, in place of those in ``docs_dir``."""
    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in sorted({path for pattern in PAGES for path in root.glob(pattern) if path.is_file()}):
        name = path.relative_to(root).as_posix()
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Writes GitHub's ``math`` blocks as ``$$``, and removes the words that only the tests read (``sh parse``)."""
    markdown = re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^```(sh|python) \w+$", r"```\1", markdown, flags=re.MULTILINE)


def on_page_content(content: str, **_: Any) -> str:
    """Turns formulas into MathML, which browsers show without a script."""

    def mathml(found: re.Match[str]) -> str:
        return convert(html.unescape(found["tex"]), display="block" if found["tag"] == "div" else "inline")

    return MATH.sub(mathml, content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Raises PluginError for a page that needs the network."""
    if request := REQUEST.search(output):
        raise PluginError(f"{page.file.src_uri}: found {request[0]}, expected no request to another host")
    return output
