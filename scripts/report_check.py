#!/usr/bin/env python3
"""Opens a report in headless Chromium: no console error, no request, no sideways scrolling of the page; screenshots.

python3 scripts/report_check.py REPORT.html [FOLDER]     screenshots into FOLDER: phone and desktop, light and dark, print

Needs: pip install playwright, and a Chromium (apt-get install chromium, or CHROMIUM=path). Without them it says so and
exits with 0: there is nothing to check with.
"""
import os
import pathlib
import shutil
import sys

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


def problems_of(browser, page_path, folder):
    problems = []
    for name, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            where = f"{name}, {scheme}"
            page.on("console", lambda m, where=where: m.type in ("error", "warning") and problems.append(f"{where}: console: {m.text}"))
            page.on("pageerror", lambda e, where=where: problems.append(f"{where}: {e}"))
            asked = []
            page.on("request", lambda r, asked=asked: asked.append(r.url))
            page.goto(page_path.resolve().as_uri())
            page.wait_for_load_state("networkidle")
            others = [url for url in asked[1:] if not url.startswith("data:")]
            problems += [f"{where}: request: {url}" for url in others]
            too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if too_wide > 0:
                problems.append(f"{where}: the page is {too_wide} px wider than the screen")
            unseen = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length")
            if unseen:
                problems.append(f"{where}: {unseen} images do not show or have no text")
            untitled = page.evaluate("[...document.querySelectorAll('svg')].filter(s => !s.querySelector('title')?.textContent).length")
            if untitled:
                problems.append(f"{where}: {untitled} charts without a title")
            if folder:
                page.screenshot(path=folder / f"{name}-{scheme}.png", full_page=True)
                if (name, scheme) == ("desktop", "light"):
                    page.pdf(path=folder / "print.pdf", format="A4")
            page.close()
    return problems


def main():
    page_path = pathlib.Path(sys.argv[1])
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if not page_path.is_file():
        sys.exit(f"{page_path}: there is no such file")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return print("skipped: no playwright (pip install playwright)")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        return print("skipped: no Chromium (CHROMIUM=path names one)")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        problems = problems_of(browser, page_path, folder)
        browser.close()
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{page_path}: no console error, no request, fits phone and desktop, light and dark")


main()
