"""What a host allows is said on its own command line, and nothing that is sent is read more widely than it was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.runtime.agent.limits import ActivationError, BadLimit, Limits, UrlPrefix
from apps.runtime.spec import compile_spec
from tests.runtime.making import acting


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("https://h.example/a", "https://h.example/a"),
        ("https://h.example/a", "https://h.example/a/b?x=1"),
        ("https://h.example/a/", "https://h.example/a/b"),
        ("https://h.example", "https://h.example/anything"),
        ("https://h.example/", "https://h.example"),
        ("https://h.example:443/a", "https://h.example/a"),
        ("https://h.example/a", "https://H.EXAMPLE/%61/b"),
        ("http://[::1]:8000/in", "http://[::1]:8000/in/x"),
    ],
)
def test_a_url_below_what_is_allowed_is_allowed(prefix: str, url: str):
    assert UrlPrefix.parse(prefix).covers(url)


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("https://h.example/a", "http://h.example/a"),
        ("https://h.example/a", "https://h.example:8443/a"),
        ("https://h.example/a", "https://h.example/ab"),
        ("https://h.example/a", "https://h.example/A"),
        ("https://h.example/a", "https://h.example/"),
        ("https://h.example/a", "https://h.example.evil.example/a"),
        ("https://h.example/a", "https://evil.example/a/https://h.example/a"),
        ("https://h.example", "https://h.example@evil.example/"),
        ("https://h.example", "https://h.example\\@evil.example/"),
        ("https://h.example/a", "https://h.example/a/../b"),
        ("https://h.example/a", "https://h.example/a/%2e%2e/b"),
        ("https://h.example/a", "https://h.example/a%2f..%2fb"),
        ("https://h.example/a", "https://h.example//a"),
        ("https://h.example/a", "https://h.example/a/%ff"),
        ("https://h.example/a", "https://h.example/a/%00"),
        ("https://h.example/a", "//h.example/a"),
        ("https://h.example/a", "https://h.example:99999/a"),
    ],
)
def test_a_url_that_is_elsewhere_or_might_be_read_as_elsewhere_is_not(prefix: str, url: str):
    assert not UrlPrefix.parse(prefix).covers(url)


@pytest.mark.parametrize(
    "text", ["*", "https://*", "ftp://h/", "https://h/?q", "https://h/#f", "https://u:p@h/", "h/a", ""]
)
def test_a_permission_that_is_no_plain_url_is_refused(text: str):
    if text == "https://*":
        assert not UrlPrefix.parse(text).covers("https://h.example/")
        return
    with pytest.raises(BadLimit):
        UrlPrefix.parse(text)


def refused(limits: Limits, *ops: str) -> str:
    plan = compile_spec(acting(*ops)).plan
    assert plan is not None
    with pytest.raises(ActivationError) as caught:
        limits.check_plan(plan)
    return caught.value.code


def test_by_default_nothing_is_allowed():
    nothing = Limits.given(None)
    assert refused(nothing, "http_post:https://h.example/") == "post_not_allowed"
    assert refused(nothing, "identity", "exec:/bin/true") == "exec_not_allowed"
    for act in (lambda: nothing.path("a"), lambda: nothing.egress_url("https://h.example/")):
        with pytest.raises(ActivationError):
            act()


def test_a_program_is_allowed_by_its_exact_path_alone(tmp_path: Path):
    limits = Limits.given(tmp_path / "data", programs=["/bin/true", "/no/such/program"])
    plan = compile_spec(acting("exec:/bin/true|--any|argument")).plan
    assert plan is not None
    limits.check_plan(plan)
    for other in ("exec:/bin/../bin/true", "exec:true", "exec:/bin/true2", "exec:/bin/false", "exec:/usr/bin//true"):
        assert refused(limits, other) == "exec_not_allowed"
    assert refused(limits, "exec:/no/such/program") == "exec_missing"


@pytest.mark.parametrize(
    "program", ["true", "/bin/../bin/true", "/bin//true", "/usr/bin/a|b", "{data}/tool", "{state}/tool"]
)
def test_a_program_that_a_pipeline_could_write_or_that_is_no_plain_path_is_refused(tmp_path: Path, program: str):
    data, state = tmp_path / "data", tmp_path / "state"
    with pytest.raises(BadLimit):
        Limits.given(data, programs=[program.format(data=data, state=state)], untouched=state)


def test_a_program_needs_a_data_folder():
    with pytest.raises(BadLimit, match="--data-dir"):
        Limits.given(None, programs=["/bin/true"])


@pytest.mark.parametrize("name", ["PATH", "LD_PRELOAD", "PYTHONPATH", "1X", "A=B", ""])
def test_a_variable_that_changes_which_code_runs_can_not_be_allowed(tmp_path: Path, name: str):
    with pytest.raises(BadLimit):
        Limits.given(tmp_path, variables=[name])


def test_secrets_are_taken_from_where_the_host_says_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = tmp_path / "password"
    kept.write_text("from a file\n")
    monkeypatch.setenv("TOKEN_HERE", "from the environment")
    limits = Limits.given(
        tmp_path, variables=["A", "B", "C"], secrets=[f"file:{kept}", "env:TOKEN_HERE", "env:NOT_THERE"]
    )
    wanted = {"A": {"secret_ref": f"file:{kept}"}, "B": {"secret_ref": "env:TOKEN_HERE"}, "C": "plain"}
    assert limits.variables_for(wanted) == {"A": "from a file", "B": "from the environment", "C": "plain"}
    for value, code in (
        ({"A": {"secret_ref": "env:HOME"}}, "secret_not_allowed"),
        ({"A": {"secret_ref": f"file:{tmp_path}/../{tmp_path.name}/password"}}, "secret_not_allowed"),
        ({"A": {"secret_ref": "env:NOT_THERE"}}, "secret_missing"),
        ({"LD_PRELOAD": "/x"}, "variable_not_allowed"),
    ):
        with pytest.raises(ActivationError) as caught:
            limits.variables_for(value)
        assert caught.value.code == code
        assert "from a file" not in str(caught.value)
