#!/usr/bin/env python3
"""Checks the links between this repository's Markdown files, offline: files, anchors, and that docs/SUMMARY.md lists every page.

What lies outside docs/ is linked from there by its address on GitHub, since the docs site has only docs/; those are checked too.
Exit code: 0 if all is well, 1 with a line for each broken link.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = re.compile(r"https://github\.com/vitfreeze/vitfreeze/(?:blob|tree)/main/")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def anchors(page):
    """The ids that GitHub and mdBook give the headings."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def problem(page, link):
    target, _, anchor = OURS.sub("/", link).partition("#")
    if re.match(r"[a-z]+:", target):
        return None  # elsewhere
    path = ROOT / target[1:] if target.startswith("/") else page.parent / target if target else page
    if not path.exists():
        return "no such file"
    if ROOT / "docs" in page.parents and ROOT / "docs" not in path.resolve().parents and not OURS.match(link):
        return "lies outside docs/: link its address on GitHub"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return "no such heading"
    return None


def main():
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True)
    pages = [ROOT / name for name in files.stdout.split()]
    found = [(page, link, problem(page, link)) for page in pages for link in LINK.findall(CODE.sub("", page.read_text()))]
    broken = [f"{page.relative_to(ROOT)}: {link}: {what}" for page, link, what in found if what]
    summary = ROOT / "docs/SUMMARY.md"
    listed = {(summary.parent / link).resolve() for link in LINK.findall(summary.read_text())} | {summary}
    broken += [f"docs/SUMMARY.md: {p.relative_to(ROOT)} is missing" for p in pages if ROOT / "docs" in p.parents and p not in listed]
    print("\n".join(broken) or f"{len(found)} links in {len(pages)} files")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
