"""Opens the HTML pages of the verifier in a real browser: nothing is cut on a phone, and every word is legible.

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
from html import unescape
from pathlib import Path

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
from schedagent.verification.html import to_html
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


def pages() -> dict[str, str]:
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
const contrast = element => {
  const [dark, light] = [getComputedStyle(element).color, behind(element)].map(bright).sort((a, b) => a - b);
  return (light + .05) / (dark + .05);
};
const measure = width => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.style.border = 0; frame.srcdoc = page;
  frame.onload = () => {
    const all = frame.contentDocument, texts = [...all.body.querySelectorAll("*")].filter(element =>
      [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    done({width, scrolls_to: all.documentElement.scrollWidth, contrast: Math.min(...texts.map(contrast)),
          ground: getComputedStyle(all.body).backgroundColor});
  };
  document.body.append(frame);
});
Promise.all(widths.map(measure)).then(measured => document.title = JSON.stringify(measured));
</script>
"""


def chromium(folder: Path, scheme: str, *words: str) -> str:
    """Run the browser without a window and return what it prints."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("this test needs Chromium: apt install chromium")
    setting = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    quiet = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/profile",
    )
    done = subprocess.run([program, *quiet, setting, *words], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def complaints(name: str, page: str, scheme: str, folder: Path) -> list[str]:
    """Say what of a page is cut or cannot be read."""
    file = folder / "measure.html"
    content = MEASURE.replace("PAGE", json.dumps(page).replace("</", "<\\/"), 1).replace("WIDTHS", str(list(WIDTHS)), 1)
    file.write_text(content, encoding="utf-8")
    shown = chromium(folder, scheme, "--virtual-time-budget=10000", "--dump-dom", file.as_uri())
    measured = json.loads(unescape(shown.partition("<title>")[2].partition("</title>")[0]))
    assert [entry["width"] for entry in measured] == list(WIDTHS)
    expected = "rgb(22, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)"
    return [
        f"{name}, {scheme}, {entry['width']} pixels: {problem}"
        for entry in measured
        for problem, found in (
            (f"it scrolls to {entry['scrolls_to']}", entry["scrolls_to"] > entry["width"]),
            (f"the least contrast is {entry['contrast']:.2f}", entry["contrast"] < LEAST_CONTRAST),
            (f"the ground is {entry['ground']}", entry["ground"] != expected),
        )
        if found
    ]


def main() -> int:
    """Look at all pages; return 1 if something is wrong with one."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="schedagent-pages-") as name:
        folder = Path(name)
        for outcome, page in pages().items():
            for scheme in SCHEMES:
                wrong += complaints(outcome, page, scheme, folder)
                for shots in map(Path, sys.argv[1:]):
                    file = folder / f"{outcome}.html"
                    file.write_text(page, encoding="utf-8")
                    shot = shots.absolute() / f"{outcome}-{scheme}.png"
                    chromium(folder, scheme, "--window-size=1200,2500", f"--screenshot={shot}", file.as_uri())
    fine = f"{len(pages())} pages are whole at {WIDTHS} pixels, and legible in {', '.join(SCHEMES)}"
    sys.stdout.write("\n".join(wrong or [fine]) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
