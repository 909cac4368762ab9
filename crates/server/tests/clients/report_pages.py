"""Pages of load tests in headless Chromium: wide, on a phone, in the dark, without scripts and on paper."""

import argparse
import pathlib
import subprocess
import time

import report_fixtures
from checks import check, equal, require
from page import WAIT_S, Browser

# Width, height, colour scheme.
VIEWS = [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]
MAX_BYTES = 1 << 20
# Of A4 without its margins, and of the paper itself in inches.
PAPER_PX = 718
PAPER_IN = {"paperWidth": 8.27, "paperHeight": 11.69}
# The least size of letters in charts, in pixels.
LEAST_PX = 9


def open_page(browser, path):
    """Loads a file and waits until it is there."""
    browser.requests.clear()
    browser.send("Page.navigate", url=path.as_uri())
    deadline = time.monotonic() + WAIT_S
    ready = f"location.href === '{path.as_uri()}' && document.readyState === 'complete'"
    while not browser.js(ready):
        require(f"{path.name} loads", time.monotonic() < deadline)
        time.sleep(0.02)


def unfold(browser):
    """Opens every part that is closed at first."""
    browser.js("document.querySelectorAll('details').forEach(part => { part.open = true; }); true")


def looks_right(browser, path, name):
    """What must hold of every page in every view."""
    for width, height, scheme in VIEWS:
        browser.view(width, height, scheme)
        open_page(browser, path)
        unfold(browser)
        where = f"{name}, {width} px, {scheme}"
        equal(f"{where}: nothing is fetched", [r["url"] for r in browser.requests], [path.as_uri()])
        over = browser.js("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        check(f"{where}: no sideways scrolling", over <= 0, over)
        light = browser.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128")
        size = browser.js("Math.min(...[...document.querySelectorAll('figure svg[viewBox] text')]"
                          ".map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a), 99)")
        check(f"{where}: charts can be read", size >= LEAST_PX, size)
        equal(f"{where}: the background is that of the scheme", light, scheme == "light")
    bare = browser.js("[...document.querySelectorAll('svg')].filter("
                      "s => !s.querySelector('title') || s.getAttribute('role') !== 'img').length")
    equal(f"{name}: pictures without a title", bare, 0)
    equal(f"{name}: scripts", browser.js("document.scripts.length"), 0)


def is_accessible(browser, path, name, axe, views=VIEWS):
    """No serious finding of axe-core, in any view."""
    for width, height, scheme in views:
        browser.view(width, height, scheme)
        open_page(browser, path)
        unfold(browser)
        browser.js(f"{axe}; true")
        found = browser.js("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations"
                           ".filter(v => ['serious', 'critical'].includes(v.impact))"
                           ".map(v => [v.id, v.nodes[0].html.slice(0, 200), v.nodes.length]))")
        equal(f"{name}, {width} px, {scheme}: barriers that axe-core finds", found, [])


def prints(browser, path, name):
    """A page on paper is light, and has words on it without scripts."""
    browser.view(PAPER_PX, 900, "dark")
    browser.send("Emulation.setEmulatedMedia", media="print", features=[
        {"name": "prefers-color-scheme", "value": "dark"}])
    open_page(browser, path)
    equal(f"{name}: paper is white", browser.js("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)")
    ink = browser.js("getComputedStyle(document.body).color")
    equal(f"{name}: ink is black", ink, "rgb(0, 0, 0)")
    good = browser.js("getComputedStyle(document.documentElement).getPropertyValue('--s0').trim()")
    equal(f"{name}: lines have the colours of light paper", good, "#0072b2")
    cut = browser.js("[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1).length")
    equal(f"{name}: tables that paper cuts off", cut, 0)
    pdf = browser.send("Page.printToPDF", printBackground=True, **PAPER_IN)
    check(f"{name}: it prints", len(pdf["data"]) > 10_000, len(pdf["data"]))
    browser.send("Emulation.setEmulatedMedia", media="", features=[])


def says(browser, path, selector, words):
    """The first thing a reader sees."""
    browser.view(1280, 900, "light")
    open_page(browser, path)
    text = browser.js(f"document.querySelector('{selector}').innerText")
    top = browser.js(f"document.querySelector('{selector}').getBoundingClientRect().bottom")
    check(f"{path.name} says {words!r} on the first screen", words in text and top < 900, (text, top))


def needs_no_scripts(browser, path, name):
    """The same words and pictures where scripts are off."""
    browser.view(1280, 900, "light")
    seen = "[document.body.innerText, document.querySelectorAll('svg').length]"
    open_page(browser, path)
    expected = browser.js(seen)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    open_page(browser, path)
    equal(f"{name}: the same without scripts", browser.js(seen), expected)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)


def check_fixtures(browser, run, folder, loadtest, axe):
    """Pages of results that a real run seldom has."""
    for name, file in report_fixtures.write(run, folder):
        pages = [folder / f"{name}-{i}.html" for i in (1, 2)]
        for page in pages:
            subprocess.run([loadtest, "report", file, "-o", page], check=True)
        equal(f"{name}: the same bytes again", pages[0].read_bytes() == pages[1].read_bytes(), True)
        size = pages[0].stat().st_size
        check(f"{name}: at most a megabyte", size <= MAX_BYTES, size)
        looks_right(browser, pages[0], name)
        is_accessible(browser, pages[0], name, axe, VIEWS[:1])
    said = {"invalid": "not valid", "zero-successes": "no measured request succeeded", "no-metrics": "answers 404",
            "hostile-name": report_fixtures.HOSTILE[:40], "dry-run": "its numbers say nothing", "a-million-requests": "1000000 of 1000000"}
    for name, words in said.items():
        open_page(browser, folder / f"{name}-1.html")
        unfold(browser)
        text = browser.js("document.body.innerText")
        check(f"{name} says {words!r}", words in text, text[:2000])


def check_links(browser, pages, least):
    """Every link of some pages leads to a file."""
    links = []
    for path in pages:
        open_page(browser, path)
        links += browser.js("[...document.querySelectorAll('a')].map(a => a.href)")
    missing = [link for link in links if not pathlib.Path(link.removeprefix("file://").split("#")[0]).is_file()]
    check(f"{pages[-1].name} leads to pages that are there", len(links) >= least and not missing, missing or links)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=pathlib.Path, help="folder with an index and one comparison")
    parser.add_argument("--suite", required=True, type=pathlib.Path, help="folder with the results of pages.toml")
    parser.add_argument("--loadtest", required=True, type=pathlib.Path, help="the program that draws pages")
    parser.add_argument("--axe", required=True, type=pathlib.Path, help="axe.min.js of axe-core")
    parser.add_argument("--chromium", default="chromium", help="the browser to start")
    args = parser.parse_args()
    results = args.results.resolve()
    comparison = next(results.glob("*/report.html"))
    run = next(results.glob("*/*/1/report.html"))
    suite = args.suite.resolve()
    search = next(suite.glob("bundled-f32-*/rate/report.html"))
    pages = {"comparison": comparison, "run": run, "index": results / "index.html", "suite": suite / "index.html",
             "search": search}
    browser = Browser(args.chromium)
    try:
        for name, path in pages.items():
            size = path.stat().st_size
            check(f"{name}: at most a megabyte", size <= MAX_BYTES, size)
            looks_right(browser, path, name)
            prints(browser, path, name)
            is_accessible(browser, path, name, args.axe.read_text())
            needs_no_scripts(browser, path, name)
        check_fixtures(browser, run.with_name("run.json"), results / "fixtures", args.loadtest, args.axe.read_text())
        says(browser, comparison, ".verdict", "2 pairs of runs made by turns")
        says(browser, comparison, ".verdict", "Too few runs")
        says(browser, run, ".verdict", "tokens/s")
        says(browser, search, ".verdict", "The search ended after")
        check_links(browser, [comparison, run, pages["index"]], 2)
        check_links(browser, [pages["suite"]], 10)
        suite_text = browser.js("document.body.innerText")
        check("the suite says what does not fit", "does not fit: 22.1 GiB" in suite_text, suite_text[:2000])
        leads = browser.js(f"[...document.links].some(a => a.href === '{search.as_uri()}')")
        equal("the suite leads to its searches", leads, True)
        equal("exceptions", browser.exceptions, [])
        equal("messages in the console", browser.messages, [])
    finally:
        browser.close()


if __name__ == "__main__":
    main()
