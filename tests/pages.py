"""Opens the HTML pages in a real browser: those of the verifier, and the reports of two stored runs.

Nothing is cut on a phone, every word is legible, nothing is said on the console, each number is the repository's, and
every plot has its marks.

    python -m tests.pages [FOLDER]          (make test-pages)

Needs Chromium, and so is no part of `make test`. Each page is laid out in frames from 360 to 1,200 pixels wide, in both
colour schemes. FOLDER takes screenshots, to look at.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from html import unescape
from pathlib import Path

from repo_store.store import PolicyRepository
from schedagent.core.rules import GATES, LOGIC
from schedagent.core.token import DeploymentToken, Scope, encode
from schedagent.core.verification import (
    Finding,
    GateResult,
    GateStatus,
    KernelResult,
    OracleResult,
    Severity,
    Step,
    VerificationReport,
)
from schedagent.report.as_json import to_json
from schedagent.report.build import build_report
from schedagent.report.page.document import to_html as report_page
from schedagent.report.page.sources import policy_texts
from schedagent.verification.html import to_html
from tests.support import measured_runs
from tests.support.page_numbers import differing
from verifier.proving.prove import ORACLES

WIDTHS = (360, 400, 600, 800, 1200)
LEAST_CONTRAST = 4.5
"""WCAG 2.2, criterion 1.4.3, for text of usual size."""
SCHEMES = {"dark": 0, "light": 1}

LONG = "x" * 200
PROGRAMS = {
    f"policy_{name}": {"instructions": 36, "verified_instructions": 1042, "jited_bytes": 187}
    for name in ("select_cpu", "enqueue", "dispatch")
}
KERNELS = tuple(KernelResult(release, GateStatus.PASSED, "", PROGRAMS) for release in ("7.3.4-amd64", "6.18.15-amd64"))
TOKEN = encode(
    DeploymentToken("ab" * 32, (("slice_us", 20000),), "cd" * 32, "ef" * 32, "7.3.4-amd64", "ab" * 20, Scope.FULL, "",
                    1_796_006_564, 1_796_092_964, "0" * 32, "ddcd676b107947bb"),
    lambda _signed: b"s" * 64,
)  # fmt: skip
STEP = Step("policy.bpf.c", 45, f"if {LONG}")
FINDINGS = (
    Finding(18, Severity.ERROR, "enqueue", "policy.bpf.c", 57, f"a path loses the task {LONG}", (STEP,)),
    Finding(20, Severity.WARNING, "enqueue", "policy.bpf.c", 60, "no kick", cleared_by="work conservation"),
)


def report_pages(folder: Path) -> dict[str, tuple[str, dict]]:
    """The pages of two runs in a repository on the disk, each with the report as JSON values."""
    with PolicyRepository(folder / "repository.sqlite") as repository:
        runs = {"build": measured_runs.build_run(repository), "service": measured_runs.service_run(repository)}
        reports = {name: build_report(repository, run) for name, run in runs.items()}
        return {
            name: (report_page(report, policy_texts(repository, report)), json.loads(json.dumps(to_json(report))))
            for name, report in reports.items()
        }


def verifier_pages() -> dict[str, str]:
    """One page of each outcome, with everything that is long."""
    passed = tuple(GateResult(gate, GateStatus.PASSED, "fine", 1.5) for gate in GATES)
    first, rest = passed[: GATES.index(LOGIC)], GATES[GATES.index(LOGIC) + 1 :]
    failed = (*first, GateResult(LOGIC, GateStatus.FAILED, LONG, 0.1, FINDINGS))
    skipped = tuple(GateResult(gate, GateStatus.SKIPPED, "not run") for gate in rest)
    unasked = tuple(GateResult(gate, GateStatus.NOT_REQUESTED, "not run") for gate in rest)
    oracles = tuple(
        OracleResult(info.name, info.rule, info.name != "weights", 0.6827, info.bound, info.unit, "a detail of it")
        for info in ORACLES.values()
    )
    known = {"tunables": (("slice_us", 20000),), "verified_at": "2026-11-30T02:43:00+00:00", "verifier_version": "3a54"}
    proved = {"kernels": KERNELS, "oracles": oracles, "declares": ("weights",), "token": TOKEN}
    name, digest, release = "a_policy_with_a_name_that_is_long_for_a_phone", "ab" * 32, "7.3.4-amd64"
    reports = {
        "passed": VerificationReport(name, "key", digest, release, passed, **proved, **known),
        "failed": VerificationReport(name, "key", digest, release, (*failed, *skipped), **known),
        "static-only": VerificationReport(name, "key", digest, release, (*passed[:3], *unasked), **known),
    }
    return {outcome: to_html(report) for outcome, report in reports.items()}


MEASURE = """
<!doctype html><meta charset="utf-8"><title>waiting</title><body><script>
const page = PAGE, widths = WIDTHS;
const rgb = text => text.match(/[0-9.]+/g).map(Number);
const bright = colour => rgb(colour).slice(0, 3).map(part => part / 255).map(part =>
  part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
  .reduce((sum, part, place) => sum + part * [.2126, .7152, .0722][place], 0);
const behind = element => {
  const colour = getComputedStyle(element).backgroundColor;
  return rgb(colour)[3] === 0 ? behind(element.parentElement) : colour;
};
const inked = element => element instanceof SVGElement || element.ownerSVGElement
  ? getComputedStyle(element).fill : getComputedStyle(element).color;
const contrast = element => {
  const [dark, light] = [inked(element), behind(element)].map(bright).sort((a, b) => a - b);
  return (light + .05) / (dark + .05);
};
const plotted = (svg, width) => {
  const box = svg.getBoundingClientRect(), outside = word => {
    const place = word.getBoundingClientRect();
    return place.right > box.right + 1 || place.left < box.left - 1;
  };
  const visible = mark => mark.getBoundingClientRect().width > 1 && getComputedStyle(mark).fill !== "none";
  return {
    plot: svg.parentElement.id, drawn: box.width > 200 && box.height > 50 && box.right <= width,
    cut: [...svg.querySelectorAll("text")].filter(outside).map(word => word.textContent),
    marks: [...svg.querySelectorAll("g[id*=-marks-]")].map(group =>
      [...group.querySelectorAll("use")].filter(visible).length),
  };
};
const measure = width => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.style.border = 0; frame.srcdoc = page;
  frame.onload = () => {
    const all = frame.contentDocument;
    all.querySelectorAll("details").forEach(folded => { folded.open = true; });
    const texts = [...all.body.querySelectorAll(":not(script, option)")].filter(element =>
      [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    const plots = [...all.querySelectorAll("figure svg")].map(svg => plotted(svg, width));
    const numbers = [...all.querySelectorAll("data")].map(number =>
      [number.dataset.at, number.getAttribute("value"), number.textContent]);
    const estimate = all.querySelector("form.savings + p output");
    done({width, scrolls_to: all.documentElement.scrollWidth, contrast: Math.min(...texts.map(contrast)),
          ground: getComputedStyle(all.body).backgroundColor, plots,
          numbers, estimate: estimate ? estimate.value : null});
  };
  document.body.append(frame);
});
Promise.all(widths.map(measure)).then(measured => document.title = JSON.stringify(measured));
</script>
"""


def chromium(folder: Path, scheme: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the browser without a window; it prints the page on stdout, and what the page logs on stderr."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("this test needs Chromium: apt install chromium")
    setting = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    quiet = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={folder}/profile",
    )
    return subprocess.run([program, *quiet, setting, *words], capture_output=True, text=True, timeout=120, check=True)


def measured(page: str, scheme: str, folder: Path) -> list[dict]:
    """Lay a page out at every width, with all that is folded unfolded, and return what the browser found."""
    file = folder / "measure.html"
    content = MEASURE.replace("PAGE", json.dumps(page).replace("</", "<\\/"), 1).replace("WIDTHS", str(list(WIDTHS)), 1)
    file.write_text(content, encoding="utf-8")
    shown = chromium(folder, scheme, "--virtual-time-budget=10000", "--dump-dom", file.as_uri()).stdout
    entries = json.loads(unescape(shown.partition("<title>")[2].partition("</title>")[0]))
    assert [entry["width"] for entry in entries] == list(WIDTHS)
    return entries


def layout_complaints(name: str, entries: list[dict], scheme: str) -> list[str]:
    """Say what of a page is cut or cannot be read."""
    expected = "rgb(22, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)"
    return [
        f"{name}, {scheme}, {entry['width']} pixels: {problem}"
        for entry in entries
        for problem, found in (
            (f"it scrolls to {entry['scrolls_to']}", entry["scrolls_to"] > entry["width"]),
            (f"the least contrast is {entry['contrast']:.2f}", entry["contrast"] < LEAST_CONTRAST),
            (f"the ground is {entry['ground']}", entry["ground"] != expected),
            *((f"plot {plot['plot']} is not drawn", not plot["drawn"]) for plot in entry["plots"]),
            *((f"plot {plot['plot']} cuts {plot['cut']}", plot["cut"]) for plot in entry["plots"]),
        )
        if found
    ]


def logged(name: str, page: str, scheme: str, folder: Path) -> list[str]:
    """Say what a page writes on the console, errors of its policy included."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    lines = chromium(folder, scheme, "--dump-dom", file.as_uri()).stderr.splitlines()
    return [f"{name}, {scheme}: console: {line}" for line in lines if ":CONSOLE" in line]


def report_complaints(name: str, entry: dict, report: dict) -> list[str]:
    """Say what of a report's page is not what its repository holds."""
    marks = {plot["plot"]: plot["marks"] for plot in entry["plots"]}
    candidates = [candidate for iteration in report["iterations"] for candidate in iteration["candidates"]]
    pairs = [len(candidate["pairs"]) for candidate in candidates if candidate["pairs"]]
    runs = Counter(
        sample["arm"]
        for iteration in report["iterations"]
        for block in iteration["blocks"]
        if not block["warm_up"]
        for sample in block["samples"]
    )
    values = [plot for plot in marks if plot.startswith("value-")]
    wrong = [f"plot {plot} has marks {marks[plot]}" for plot in values if sorted(marks[plot]) != sorted(runs.values())]
    if marks["ratios"] != pairs:
        wrong.append(f"plot ratios has marks {marks['ratios']} for pairs {pairs}")
    if len(values) < 2 or not {"runnable", "capacity-0"} <= set(marks):
        wrong.append(f"there are only the plots {', '.join(marks)}")
    if len(entry["numbers"]) < 200:
        wrong.append(f"there are only {len(entry['numbers'])} numbers")
    if report["workload"]["goal"] == "makespan" and "a year" not in (entry["estimate"] or ""):
        wrong.append("the estimate is not worked out")
    return [f"{name}: {problem}" for problem in (*wrong, *differing(entry["numbers"], report))]


def main() -> int:
    """Look at all pages; return 1 if something is wrong with one."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="schedagent-pages-") as name:
        folder = Path(name)
        reports = report_pages(folder)
        pages = verifier_pages() | {f"report-{run}": page for run, (page, _values) in reports.items()}
        for outcome, page in pages.items():
            for scheme in SCHEMES:
                entries = measured(page, scheme, folder)
                wrong += layout_complaints(outcome, entries, scheme) + logged(outcome, page, scheme, folder)
                if outcome.removeprefix("report-") in reports:
                    values = reports[outcome.removeprefix("report-")][1]
                    wrong += [problem for entry in entries for problem in report_complaints(outcome, entry, values)]
                for shots in map(Path, sys.argv[1:]):
                    take(shots, outcome, page, scheme, folder)
    fine = f"{len(pages)} pages are whole at {WIDTHS} pixels, and legible in {', '.join(SCHEMES)}"
    sys.stdout.write("\n".join(wrong or [fine]) + "\n")
    return bool(wrong)


def take(shots: Path, outcome: str, page: str, scheme: str, folder: Path) -> None:
    """Take screenshots of a page, as wide as a desk and as a phone."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    for width, height in ((1200, 2500), (500, 5000)):
        shot = shots.absolute() / f"{outcome}-{scheme}-{width}.png"
        chromium(folder, scheme, f"--window-size={width},{height}", f"--screenshot={shot}", file.as_uri())


if __name__ == "__main__":
    raise SystemExit(main())
