"""What mkdocs does not do by itself: pages that lie outside docs/, and an API page for each package.

The pages link to each other as they lie in the repository, so that the links work there too; here each link is
rewritten to where its file is on the site.
"""

import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "rpf_lightning"
CARD = "src/rpf_lightning/pretrained/celeba-hq-16to128/README.md"
OUTSIDE = {  # in the repository -> on the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE",
    "benchmarks/RESULTS.md": "results.md",
    CARD: "celeba-hq-16to128.md",
    **{f"notebooks/{file.name}": f"notebooks/{file.name}" for file in ROOT.glob("notebooks/*.ipynb")},
}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/ and the API reference."""
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    modules: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if not parts[-1].startswith("_") or parts[-1] == "__init__":
            modules.setdefault(parts[1] if len(parts) > 2 else parts[0], []).append(name)
    for package, names in modules.items():
        first, *others = names  # what the package itself exports stands in its modules
        text = "\n\n".join(
            [
                f"# {package}",
                f"::: {first}\n    options: {{members: false}}",
                *(f"::: {name}" for name in others),
            ]
        )
        files.append(File.generated(config, f"api/{package}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links to where their files are on the site."""
    here = page.file.src_uri
    source = next((file for file, target in OUTSIDE.items() if target == here), f"docs/{here}")

    def rewritten(match: re.Match[str]) -> str:
        file = normpath(f"{source}/../{match[2]}")
        target = OUTSIDE.get(file, file.removeprefix("docs/"))
        return match[1] + relpath(target, f"{here}/..")

    return LINK.sub(rewritten, markdown)
