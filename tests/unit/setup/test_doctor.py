"""The doctor's findings on machines that lack one thing each, and how they are shown."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from schedagent.core.errors import SetupError
from schedagent.core.installation import Installation, InstalledBy
from schedagent.core.settings import Settings
from schedagent.core.trials.usage import MachineCosts
from schedagent.setup import doctor
from schedagent.setup.doctor import emulation_bench, examine, is_ready, render, to_json
from schedagent.setup.finding import Finding
from verifier.microvm.kvm import KvmProbe


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_empty_cache_lacks_a_kernel(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: type("Name", (), {"release": "0.0-none", "version": "#1"}))
    findings = by_name(examine(settings))
    assert findings["VM kernel"].status == "missing"
    assert findings["VM kernel"].remedy == "run: make kernel"
    assert findings["KVM"].status == "warning"
    assert findings["cache folder"].status == "ok"
    assert findings["model"].status == "info"
    assert not is_ready(list(findings.values()))


def test_a_kvm_that_may_not_be_opened_is_no_reason_for_another_machine(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = KvmProbe(False, "/dev/kvm may not be opened by this user", "join the group kvm: sudo usermod -aG kvm me")
    monkeypatch.setattr(doctor, "default_kernel", lambda _settings: None)
    monkeypatch.setattr("verifier.microvm.kvm.kvm_usable", lambda _settings, _kernel: probe)
    finding = doctor._kvm(settings)
    assert (finding.status, finding.detail, finding.remedy) == ("warning", probe.reason, probe.remedy)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(cache_dir=tmp_path / "file/cache", state_dir=tmp_path)
    finding = by_name(examine(settings))["cache folder"]
    assert finding.status == "missing"
    assert "SCHEDAGENT_CACHE" in finding.remedy


def test_an_installed_python_has_the_locked_versions_if_set_up_s_stamp_is_there(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    for by in (InstalledBy.DEBIAN, InstalledBy.MAKE_INSTALL, InstalledBy.CHECKOUT):
        monkeypatch.setattr(doctor, "this_installation", lambda by=by: Installation(tmp_path, by, Path("python3")))
        assert doctor._virtual_environment(settings).status == "warning", by
    monkeypatch.setattr(doctor, "this_installation", lambda: Installation(tmp_path, InstalledBy.PIP, Path("python3")))
    assert doctor._virtual_environment(settings).status == "ok", "pip and uv cannot keep a lock: nothing to warn of"
    (tmp_path / "packages.stamp").write_text("")
    found = doctor._virtual_environment(settings)
    assert (found.status, str(tmp_path) in found.detail) == ("ok", True)


def programs_saying(monkeypatch: pytest.MonkeyPatch, text: str) -> dict[str, Finding]:
    def run(argv: list[str], timeout_s: float) -> object:
        if not text:
            raise SetupError(f"{argv[0]} is not installed")
        return type("Done", (), {"stdout": text.encode()})

    monkeypatch.setattr("schedagent.core.process.proc.run", run)
    return by_name(list(doctor._programs()))


def test_program_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    old = programs_saying(monkeypatch, "QEMU emulator version 7.2.0 (Debian 1:7.2+dfsg-7)")
    assert old["QEMU"].status == "missing"
    assert "needed: 9.0" in old["QEMU"].detail
    assert programs_saying(monkeypatch, "QEMU emulator version 10.0.2")["QEMU"].status == "ok"
    assert programs_saying(monkeypatch, "no number")["QEMU"].status == "missing"
    gone = programs_saying(monkeypatch, "")
    assert {finding.status for finding in gone.values()} == {"missing"}
    assert gone["bpftool"].consequence == "a kernel's types cannot be read"


@pytest.mark.parametrize(
    ("installed", "status", "told"),
    [
        ({"clang-19": "19.1.7", "clang-20": "20.1.0"}, "ok", "19.1.7 ("),
        ({"clang-16": "16.0.6"}, "info", "16.0.6 ("),
        ({"clang": "18.1.3"}, "info", "19 is the release that was tested"),
        ({"clang": "15.0.1"}, "missing", "no clang from 16 on is installed"),
        ({}, "missing", "no clang from 16 on is installed"),
    ],
)
def test_a_clang_that_compile_accepts_is_not_missing(
    installed: dict[str, str], status: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(argv: list[str], timeout_s: float) -> object:
        version = installed[Path(argv[0]).name]
        return type("Done", (), {"stdout": f"Debian clang version {version} (1)\nTarget: x".encode()})

    monkeypatch.setattr(doctor, "find_clang", doctor.find_clang.__wrapped__)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name in installed else None)
    monkeypatch.setattr("schedagent.core.process.proc.run", run)
    found = doctor._clang()
    assert (found.status, told in found.detail) == (status, True), found
    assert (found.consequence == "policies cannot be compiled") is (status == "missing")


def test_compiler_sandbox_is_tried(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(examine(settings))["compiler sandbox"].status == "ok"
    monkeypatch.setattr("kernel_bpf.build.sandbox._bubblewrap", lambda: "/bin/false")
    refused = by_name(examine(settings))["compiler sandbox"]
    assert refused.status == "missing"
    assert "user namespaces" in refused.remedy


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers /v1/models to those who have the key."""

    def do_GET(self) -> None:
        known = self.path == "/v1/models" and self.headers["Authorization"] == "Bearer right"
        self.send_response(200 if known else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "status", "said"), [("right", "ok", "small at"), ("wrong", "warning", "HTTP status 401")]
)
def test_model_endpoint(tmp_path: Path, endpoint: str, key: str, status: str, said: str) -> None:
    settings = Settings(tmp_path, tmp_path, model_base_url=endpoint, model_name="small", model_api_key=key)
    finding = doctor._model(settings)
    assert (finding.status, said in finding.detail) == (status, True)
    assert key not in finding.detail


def test_model_out_of_reach_is_never_needed(tmp_path: Path) -> None:
    settings = Settings(tmp_path, tmp_path, model_base_url="http://127.0.0.1:9/v1", model_name="small")
    finding = doctor._model(settings)
    assert finding.status == "warning"
    assert "Connection refused" in finding.detail
    assert is_ready([finding])


def test_table_shows_text_as_it_is() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render([Finding("KVM", "warning", "[Errno 2] gone", "it is slower", "run: x")]))
    text = console.export_text()
    assert "[Errno 2] gone" in text
    assert "it is slower" in text
    assert "run: x" in text


def test_json_says_whether_it_is_ready() -> None:
    fine, bad = Finding("a", "ok", "1.2"), Finding("b", "missing", "", "nothing works", "run: make setup")
    assert to_json([fine])["ready"] is True
    assert to_json([fine, bad]) == {
        "ready": False,
        "findings": [
            {"name": "a", "status": "ok", "detail": "1.2", "consequence": "", "remedy": ""},
            {
                "name": "b",
                "status": "missing",
                "detail": "",
                "consequence": "nothing works",
                "remedy": "run: make setup",
            },
        ],
    }


def test_sentences_are_wrapped_for_a_terminal_but_no_path_and_no_command_is_broken() -> None:
    path = "/home/somebody/.cache/schedagent/kernels/7.3.4+deb13-amd64/vmlinuz"
    command = f"run as root: chmod a+r {path}"
    finding = Finding("host kernel in the VM", "missing", f"it is {path}", "without it, " * 12, command)
    lines = render([finding], 80).plain.splitlines()
    assert any(path in line for line in lines)
    assert lines[-1].strip() == command
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert len(render([finding]).plain.splitlines()) == 3, "nothing is wrapped in a pipe"


class Lab:
    """A lab as `emulation_bench` sees it."""

    def __init__(self, costs: MachineCosts | None, *, kvm: bool = False) -> None:
        self.kvm = kvm
        self._costs = costs

    def costs(self) -> MachineCosts | None:
        return self._costs


def test_what_emulation_costs_is_told_in_words() -> None:
    finding = emulation_bench(Lab(MachineCosts(19.6, 61_234.0, 2044.0)))
    assert finding.status == "info"
    assert finding.detail == (
        "work takes 20 times as long in the VM as on this machine; a task switch takes 61 us instead of 2.0 us, "
        "30 times as long"
    )


def test_what_emulation_costs_may_be_nothing_or_unknown() -> None:
    assert emulation_bench(Lab(None, kvm=True)).status == "ok"
    unknown = emulation_bench(Lab(None))
    assert (unknown.status, unknown.remedy) == ("warning", "run it again when this machine has less to do")
