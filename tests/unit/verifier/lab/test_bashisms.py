"""What plain shells do not understand, found where it is code and not where it is quoted."""

from __future__ import annotations

import pytest

from verifier.lab.bashisms import bashisms


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("for i in {1..8}; do ./work $i & done; wait", "{1..8}"),
        ("echo {a..e..2}", "{1..8}"),
        ("make -j &> build.log", "&>"),
        ("make -j &>> build.log", "&>"),
        ("make |& tee log", "|&"),
        ("cp file.{c,h} out/", "{a,b}"),
        ("if [[ -f x ]]; then make; fi", "[[ ]]"),
        ("(( i++ ))", "(( ))"),
        ("for ((i=0; i<3; i++)); do :; done", "(( ))"),
        ("cat <<< text", "<<<"),
        ("diff <(ls a) <(ls b)", "<( )"),
        ("make > >(tee log)", "<( )"),
        (r"printf $'a\tb'", "$'...'"),
        ("a=(1 2 3)", "arrays"),
        ('echo "${x//a/b}"', "${x//a/b}"),
        ("echo ${x^^}", "${x//a/b}"),
        ("sleep 0.$RANDOM", "$RANDOM"),
        ('echo "$RANDOM"', "$RANDOM"),
        ("a | b; echo ${PIPESTATUS[0]}", "$RANDOM"),
        ("function f { :; }; f", "function"),
        ("source ./env.sh && make", "source"),
        ("shopt -s globstar; ls **", "shopt"),
    ],
)
def test_what_only_bash_understands(command, name):
    assert bashisms(command) == (name,)


@pytest.mark.parametrize(
    "command",
    [
        "make -j > build.log 2>&1",
        "make -j & wait",
        "a && b || c; d & e",
        "bash -c 'for i in {1..8}; do [[ -f $i ]] && echo $RANDOM &> log; done'",
        "awk '{print $1,$2}' file",
        'awk "{print $1,$2}" file',
        "find . -exec cat {} +",
        "echo ${x:-default} ${x%.c} ${x#a} $((1 + 2)) $(( x << 2 ))",
        "git show HEAD@{1}",
        "(cd a; (cd b; make))",
        "[ -f x ] && echo \\{1..3\\}",
        "echo one # &> and {1..8}",
        "cat << EOF\nEOF",
        "x=$(ls); y=`ls`",
        "ls resource; sourcery x",
        "echo 2>&1 >&2 <&0 1<>file",
        "",
    ],
)
def test_what_every_shell_understands(command):
    assert bashisms(command) == ()


def test_each_is_named_once():
    assert bashisms("echo {1..3} {1..4}; make &> log") == ("&>", "{1..8}")
