"""Links out of docs/, for the site: they are right in the repository, and lead to copies of those files here.

A page of docs/ links to `../benchmarks/results/stream.md` as it lies in the repository. MkDocs knows files of docs/
alone; so the files that pages link to are added to the site by their paths in the repository, and the links follow.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parent.parent
LINKED = (
    "CHANGELOG.md",
    "accelerate_configs/*",
    "benchmarks/*.py",
    "benchmarks/results/**/*",
    "cluster/*",
    "examples/*",
)
_LINK = re.compile(r"(?<=\]\()[^)#\s:]+(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, as `LINKED`; none of it appears in the navigation."""
    for path in sorted(found for pattern in LINKED for found in REPOSITORY.glob(pattern) if found.is_file()):
        name = path.relative_to(REPOSITORY).as_posix()
        files.append(File(name, str(REPOSITORY), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    folder = posixpath.dirname(_in_repository(page.file))

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[0]))
        on_site = target.removeprefix("docs/")
        return posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(link, markdown)


def _in_repository(file: File) -> str:
    return os.path.relpath(file.abs_src_path or "", REPOSITORY).replace(os.sep, "/")
