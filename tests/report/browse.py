"""Open every view of a Snakemake report in headless Chromium and print what was seen, as JSON.

python browse.py REPORT SCREENSHOTS CHROMIUM

It runs in an environment of its own (requirements.txt); test_report.py judges what it prints.
"""

import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Frame, Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

# What a document is made of: its tags, its attributes, its pictures, and its tables' widths.
FACTS = """() => ({
    title: document.title,
    text: document.body.innerText,
    tags: [...new Set([...document.querySelectorAll('*')].map(e => e.tagName))].sort(),
    attributes: [...new Set([...document.querySelectorAll('*')].flatMap(e =>
        [...e.attributes].map(a => a.name)))].sort(),
    pictures: [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth]),
    tables: [...document.querySelectorAll('table')].map(t =>
        [...new Set([...t.rows].map(r => r.cells.length))]),
    scripted: Boolean(window.hit),
    top: document.querySelector('.prose h1, h1')?.getBoundingClientRect().top,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""


def look(page: Page, name: str, folder: Path) -> dict[str, Any]:
    """Take a screenshot and return the facts of what the report's right side shows."""
    page.wait_for_timeout(300)
    page.screenshot(path=folder / f"{name}.png")
    inner = [frame for frame in page.frames if frame.parent_frame]
    for frame in inner:
        frame.wait_for_load_state()
    shown: Frame = inner[0] if inner else page.main_frame
    return shown.evaluate(FACTS)


def point(page: Page, folder: Path) -> dict[str, Any]:
    """Find a head of the atlas by mouse, one by keyboard, one by its token, and some by a ratio."""
    (atlas,) = [frame for frame in page.frames if frame.parent_frame]
    said, cells = atlas.locator("#said"), atlas.locator("[role=grid] td")
    outside = atlas.locator("td.outside").evaluate_all("own => own.map(e => e.ariaLabel)")
    cells.nth(1).hover()
    seen = {"mouse": [cells.nth(1).get_attribute("aria-label"), said.inner_text()]}
    atlas.locator("#find").click()
    for key in ("Tab", "ArrowUp", "End", "ArrowLeft", "ArrowDown", "Home", "ArrowRight"):
        page.keyboard.press(key)
    label = atlas.evaluate("document.activeElement.getAttribute('aria-label')")
    seen |= {"keyboard": [label, said.inner_text()], "live": said.get_attribute("aria-live")}
    page.keyboard.press("Tab")
    seen["next"] = atlas.evaluate("document.activeElement.closest('table').ariaLabel")
    atlas.locator("#find").fill("<")
    seen["found"] = (
        atlas.locator("output").inner_text(),
        atlas.locator("[role=grid] td:not(.dim)").count(),
    )
    page.keyboard.press("Enter")
    seen["token"] = said.inner_text()
    page.screenshot(path=folder / "atlas.png")
    atlas.locator("button").first.click()
    seen["framed"] = atlas.locator("td.scaled").evaluate_all("own => own.map(e => e.ariaLabel)")
    seen["row"] = atlas.locator("tbody tr").first.locator("td").all_inner_texts()
    page.screenshot(path=folder / "atlas-framed.png")
    return seen | {"outside": outside, "scripted": atlas.evaluate("Boolean(window.hit)")}


def browse(page: Page, folder: Path) -> dict[str, Any]:
    """Visit the landing page, every result with its caption, every rule, and the general views."""
    seen: dict[str, Any] = {"landing": look(page, "landing", folder), "results": {}, "rules": {}}
    seen["categories"] = page.evaluate("Object.keys(categories).sort()")
    for number, category in enumerate(seen["categories"]):
        page.evaluate("app.setView({navbarMode: 'menu'})")
        page.locator("nav").get_by_text(category, exact=True).click()
        rows = page.locator("nav table tbody tr")
        for row in range(rows.count()):
            own = rows.nth(row)
            label = own.locator("td").first.inner_text()
            own.locator("td").last.locator("a").first.click()
            facts = look(page, f"{number + 1}-{row + 1}", folder)
            facts["mime"] = page.evaluate("results[app.state.resultPath].mime_type")
            facts["path"] = page.evaluate("app.state.resultPath")
            if facts["path"].endswith("atlas.html"):
                seen["atlas"] = point(page, folder)
            own.locator("td").last.locator("a").last.click()
            facts["caption"] = page.locator(".prose-invert").inner_text()
            facts["navigation"] = page.evaluate(FACTS)
            seen["results"][f"{category} / {label}"] = facts
            page.evaluate(
                "([mode, category]) => { const own = Object.keys(categories[category]);"
                "app.setView({navbarMode: mode, category, subcategory: own[0]}) }",
                ["subcategory", category],
            )
    for rule in page.evaluate("Object.keys(rules)"):
        page.evaluate("rule => app.setView({navbarMode: 'ruleinfo', ruleinfo: rule})", rule)
        page.wait_for_timeout(30)
        seen["rules"][rule] = page.evaluate(FACTS)["text"][:2000]
    for view, entry in (("workflow", "Workflow"), ("statistics", "Statistics"), ("about", "About")):
        page.evaluate("app.setView({navbarMode: 'menu'})")
        page.locator("nav").get_by_text(entry, exact=True).click()
        page.wait_for_timeout(700)
        seen[view] = look(page, view, folder)
        seen[view]["drawn"] = page.locator("canvas, svg.marks").count()
    return seen


def main(report: Path, folder: Path, chromium: str) -> None:
    """Print what was seen, with every message of the console and every request."""
    folder.mkdir(parents=True, exist_ok=True)
    messages: list[list[str]] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.on("console", lambda said: messages.append([said.type, said.text[:500]]))
        page.on("pageerror", lambda error: messages.append(["error", str(error)[:500]]))
        page.on(
            "dialog", lambda dialog: (messages.append(["dialog", dialog.message]), dialog.dismiss())
        )
        page.on("request", lambda request: requests.append(request.url[:200]))
        try:
            page.goto(report.resolve().as_uri())
            page.wait_for_selector("#app a")
            seen = browse(page, folder)
        except Error as error:
            page.screenshot(path=folder / "failed.png")
            seen = {"failed": str(error)}
        seen |= {"messages": messages, "requests": requests}
        browser.close()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
