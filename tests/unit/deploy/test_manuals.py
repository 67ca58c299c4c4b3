"""Manual pages and completions: all commands are there, and Tab really completes. tests/lint has the pages read."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest

from deploy.setup import completions, manuals
from deploy.setup.manuals import configuration_page, escaped, pages
from schedagent.cli.app import EPILOG
from schedagent.cli.guide.statuses import EXIT_STATUSES, statuses_of
from schedagent.cli.guide.topics import load_topics
from schedagent.core.settings import OPTIONS, variables
from schedagent.schedagentd.config import Config
from tests.documentation import ROOT


@pytest.fixture(scope="module")
def made():
    return pages()


def words_of(page):
    return page.replace("\\-", "-").replace("\\(dq", '"').replace("\\&", "").replace("\\e", "\\")


def test_every_command_has_its_page_with_every_option(made):
    command = manuals.typer.main.get_command(manuals.cli.app)
    assert {f"schedagent-{name}.1" for name in command.commands} <= set(made)
    for name, below in command.commands.items():
        told = words_of(made[f"schedagent-{name}.1"])
        for each in (below, *getattr(below, "commands", {}).values()):
            for parameter in each.params:
                names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
                assert all(option in told for option in names), (name, parameter.name)


def test_settings_and_exit_statuses_are_told(made):
    told = words_of(made["schedagent.1"])
    assert all(f".B {variable}\n" in told for variable in variables().values())
    assert re.findall(r"\.B (\d+)\n", told) == re.findall(r"\b(\d+) [a-z]", EPILOG) == [*map(str, EXIT_STATUSES)]


def test_every_topic_has_its_page_with_its_examples_whole(made):
    for name, topic in load_topics().items():
        page = words_of(made[f"schedagent-{name}.7"])
        assert page.splitlines()[0].startswith(f".TH SCHEDAGENT-{name.upper()} 7 ")
        for line in topic.body.splitlines():
            if line.startswith("    "):
                assert f"{line.strip()}\n" in page
        assert "`" not in page
        assert "\n- " not in page


def test_every_verb_has_its_example_and_its_own_exit_statuses(made):
    page = words_of(made["schedagent-verify.1"])
    assert ".SH EXAMPLES\n.RS 4\n.nf\nschedagent verify longest_first --set slice_us=5000\n.fi\n.RE\n" in page
    assert "Example:" not in page
    assert re.findall(r"\.B (\d+)\n", page) == [*map(str, statuses_of("verify"))]
    assert "A gate rejected the policy." in page
    runs = words_of(made["schedagent-runs.1"])
    assert "It went as recorded." in runs
    assert runs.count("Exit status:") == runs.count("Example:") == runs.count(".SS ")
    assert ".SH EXIT STATUS" not in runs


def test_tables_of_the_configuration_file_are_described(made):
    page = words_of(made["schedagent.1"])
    assert ".SH CONFIGURATION FILE\n" in page
    for key, option in OPTIONS.items():
        assert option.variable or f".B [{key}]\n" in page, key


def test_what_hacking_says_shows_a_page(made, capsys):
    named = re.findall(r"make man PAGE=(\S+)", (ROOT / "HACKING.md").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert "\t@$(BIN)/python -m deploy.setup.manuals $(PAGE) | mandoc -a\n" in makefile
    assert named
    for page in (*named, *re.findall(r"make man PAGE=(\S+)", makefile)):
        assert manuals.main([page]) == 0
        assert capsys.readouterr().out == made[page]
    assert manuals.main([]) == 0
    assert capsys.readouterr().out == made["schedagent.1"]
    assert manuals.main(["nonsense.1"]) == 1
    assert "schedagent-verify.1" in capsys.readouterr().err


def test_every_key_of_the_daemon_is_on_its_page_with_its_default(made):
    told = words_of(made["schedagentd.toml.5"])
    for field in dataclasses.fields(Config):
        assert f".B {field.name} = " in told or f".B [{field.name}]\n" in told
    assert '.B rollback = "auto"\n' in told


def test_the_daemon_s_own_page_knows_version_and_day(made):
    heading = made["schedagentd.8"].splitlines()[1]
    assert re.fullmatch(r'\.TH SCHEDAGENTD 8 \d{4}-\d\d-\d\d "schedagent [0-9.]+" "System Administration"', heading)


def test_words_that_would_steer_roff_do_not():
    assert escaped('.so /etc/shadow\n\'br\na\\fBb -x "y"') == ("\\&.so /etc/shadow\n\\&'br\na\\efBb \\-x \\(dqy\\(dq")


def test_a_configuration_s_comments_belong_to_the_keys_below_them():
    page = configuration_page("x.toml", "# File of x.\n\n# how long, in seconds:\n#a = 1\nb = 'c'\n\n[deep]\n")
    assert ".TP\n.B a = 1\n.TQ\n.B b = 'c'\nHow long, in seconds.\n.TP\n.B [deep]\n" in page
    assert "File of x" not in page


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("schedagent resu", {"resume"}),
        ("schedagent verify --sta", {"--static"}),
        ("schedagent runs re", {"replay", "report"}),
    ],
)
def test_tab_completes_in_bash(tmp_path, typed, expected):
    program = tmp_path / "schedagent"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m schedagent "$@"\n')
    program.chmod(0o755)
    asking = (
        f"{completions.script('bash')}\nCOMP_WORDS=({typed}) COMP_CWORD={len(typed.split()) - 1}\n"
        f"_schedagent_completion {program}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\ncomplete -p schedagent\n"
    )
    done = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, timeout=60, check=False)
    *offered, registered = done.stdout.splitlines()
    assert set(offered) == expected, done.stderr
    assert "_schedagent_completion schedagent" in registered


def test_each_shell_finds_its_file():
    assert completions.script("zsh").startswith("#compdef schedagent\n")
    assert "complete --command schedagent " in completions.script("fish")
    assert completions.files(manuals.Path("/usr"))["zsh"].parent.name == "vendor-completions"
