"""The report page with many candidates in headless Chromium: its size, and how fast it is there and acts.

    python -m benchmarks.report_page CATALOG ARCHIVE [--candidates 500] [--repeats 5] [--out FOLDER]

The best candidates of the catalogue, unchecked ones included, are put on a page with their light curves and
stamps. Medians of the repeats: wall time from the start of the navigation to DOMContentLoaded and to the load
event, and from a sort, a filter or a label to the end of the frame that shows it; beside it the CPU time of
the page's main thread, which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.report.page import write_report
from benchmarks.browser import Browser

_TIMES = """(() => { const [n] = performance.getEntriesByType("navigation");
  return {"DOMContentLoaded": n.domContentLoadedEventEnd, "load": n.loadEventEnd}; })()"""
_ACTIONS = {
    "sort by probability": 'document.querySelector("[data-key=prob]").click()',
    "sort by name": 'document.querySelector("[data-key=name]").click()',
    "filter a class away": 'document.querySelector("[name=class][value=\\"SN I\\"]").click()',
    "and back": 'document.querySelector("[name=class][value=\\"SN I\\"]").click()',
    "label": 'document.querySelector(".card:not([hidden]) [data-label=yes]").click()',
}
#: Milliseconds of an action and of the layout and painting that follow.
_TIMED = """new Promise((done) => requestAnimationFrame(() => {
  const start = performance.now();
  %s;
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start), 0));
}))"""


def cpu_ms(browser: Browser) -> float:
    """CPU time of the page's main thread so far."""
    values = {m["name"]: m["value"] for m in browser.call("Performance.getMetrics")["metrics"]}
    return 1e3 * float(values["TaskDuration"])


def main() -> None:
    """Write the page, measure it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("catalog")
    parser.add_argument("archive")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        listed, page = folder / "candidates.parquet", folder / "report.html"
        find_candidates(asked.catalog, str(listed), FindOptions(top=asked.candidates, include_unchecked=True))
        answer = write_report(asked.catalog, asked.archive, page, candidates=str(listed))
        wall: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        with Browser(Path(scratch)) as browser:
            browser.call("Performance.enable", timeDomain="threadTicks")
            browser.size(1400, 1000)
            for _ in range(asked.repeats):
                browser.open(page)  # the process is a new one, so its time begins at 0
                cpu.setdefault("load", []).append(cpu_ms(browser))
                for name, value in browser.run(_TIMES).items():
                    wall.setdefault(name, []).append(value)
                for name, script in _ACTIONS.items():
                    before = cpu_ms(browser)
                    wall.setdefault(name, []).append(browser.run(_TIMED % script))
                    cpu.setdefault(name, []).append(cpu_ms(browser) - before)
            elements, images = browser.run("[document.querySelectorAll('*').length, document.images.length]")
    size = f"{answer['bytes'] / 1e6:.1f} MB, {elements:,} elements, {images:,} images"
    print(f"{answer['candidates']} candidates, {size}")
    print("\n| | wall, ms | slowest, ms | CPU, ms |\n|---|---|---|---|")
    for name, values in wall.items():
        spent = f"{statistics.median(cpu[name]):.0f}" if name in cpu else ""
        print(f"| {name} | {statistics.median(values):.0f} | {max(values):.0f} | {spent} |")


if __name__ == "__main__":
    main()
