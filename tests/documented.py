"""The commands that README, documentation and model card show: their indented lines that begin with `rpf`."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARD = ROOT / "src" / "rpf_lightning" / "pretrained" / "celeba-hq-16to128" / "README.md"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(*pages: Path) -> list[list[str]]:
    """Words after `rpf`; without lines that stand for several commands, as `rpf fit ...` does."""
    found = []
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for name, value in re.findall(r'^    ([A-Z]+)="([^"]+)"', text, re.MULTILINE):
            text = text.replace(f"${name}", " ".join(value.split()))
        lines = re.findall(r"^ {4,}rpf (?!.*\.\.\.)(.+)", text, re.MULTILINE)
        found += [shlex.split(line, comments=True) for line in lines]
    return found
