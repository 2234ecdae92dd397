"""What a host allows is set on its own command line, and nothing that is sent is read more widely than it was meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apps.runtime.agent.limits import ActivationError, BadLimit, Limits, UrlPrefix
from apps.runtime.ops import KINDS
from apps.runtime.spec import compile_spec
from tests.runtime.making import acting
from tests.runtime.scratch_op import SCRATCH


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


@pytest.mark.parametrize("text", ["*", "ftp://h/", "https://h/?q", "https://h/#f", "https://u:p@h/", "h/a", ""])
def test_a_permission_that_is_no_plain_url_is_refused(text: str):
    with pytest.raises(BadLimit):
        UrlPrefix.parse(text)


def test_a_star_in_a_permission_is_a_star_and_no_pattern():
    assert not UrlPrefix.parse("https://*").covers("https://h.example/")
    assert not UrlPrefix.parse("https://h.example/*").covers("https://h.example/a")


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(ActivationError) as caught:
        act()
    return caught.value.code


def refused(limits: Limits, *ops: str) -> str:
    plan = compile_spec(acting(*ops)).plan
    assert plan is not None
    return code_of(lambda: limits.check_plan(plan))


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda limits: limits.path("a"), "path_not_allowed"),
        (lambda limits: limits.egress_url("https://h.example/"), "url_not_allowed"),
        (lambda limits: limits.check_post("https://h.example/"), "post_not_allowed"),
        (lambda limits: limits.check_exec(("/bin/true",)), "exec_not_allowed"),
        (lambda limits: limits.variables_for({"A": "plain"}), "variable_not_allowed"),
    ],
)
def test_by_default_nothing_is_allowed(act: Callable[[Limits], object], code: str):
    assert code_of(lambda: act(Limits.given(None))) == code


def test_by_default_no_plan_reaches_outside():
    nothing = Limits.given(None)
    assert refused(nothing, "http_post:https://h.example/") == "post_not_allowed"
    assert refused(nothing, "identity", "exec:/bin/true") == "exec_not_allowed"


def test_what_is_allowed_for_one_use_is_not_allowed_for_another(tmp_path: Path):
    limits = Limits.given(tmp_path, egress=["https://out.example"], posts=["https://post.example"])
    assert limits.egress_url("https://out.example/a") == "https://out.example/a"
    limits.check_post("https://post.example/a")
    assert code_of(lambda: limits.egress_url("https://post.example/a")) == "url_not_allowed"
    assert code_of(lambda: limits.check_post("https://out.example/a")) == "post_not_allowed"


def test_a_capability_that_this_host_has_no_limit_for_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(KINDS, SCRATCH.name, replace(SCRATCH, capability="action:scratch"))
    everything = Limits.given(tmp_path, egress=["https://h"], posts=["https://h"], programs=["/bin/true"])
    assert refused(everything, SCRATCH.name) == "capability_not_allowed"


@pytest.mark.parametrize("path", ["..", "../x", "/etc/passwd", "a/../../x", ".", "", "a/.."])
def test_a_path_outside_of_the_data_folder_or_the_folder_itself_is_refused(tmp_path: Path, path: str):
    limits = Limits.given(tmp_path / "data")
    assert limits.path("a/../b") == tmp_path / "data" / "b"
    assert code_of(lambda: limits.path(path)) == "path_not_allowed"


def test_a_program_that_is_a_folder_or_can_not_be_run_is_missing(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    for program in (str(plain), "/bin"):
        limits = Limits.given(tmp_path / "data", programs=[program])
        assert code_of(lambda limits=limits, program=program: limits.check_exec((program,))) == "exec_missing"


@pytest.mark.parametrize("text", ["", "HOME", "env:", "env:1X", "env:A=B", "file:", "file:relative", "vault:x"])
def test_a_secret_that_is_neither_of_the_environment_nor_a_whole_path_is_refused(tmp_path: Path, text: str):
    with pytest.raises(BadLimit, match="not a secret"):
        Limits.given(tmp_path, secrets=[text])


def test_a_secret_that_is_no_text_is_missing(tmp_path: Path):
    kept = tmp_path / "kept"
    limits = Limits.given(tmp_path, variables=["A"], secrets=[f"file:{kept}"])
    for data in (b"a\0b", b"\xff", None):
        kept.unlink(missing_ok=True) if data is None else kept.write_bytes(data)
        assert code_of(lambda: limits.variables_for({"A": {"secret_ref": f"file:{kept}"}})) == "secret_missing"


def test_a_program_is_allowed_by_its_exact_path_alone(tmp_path: Path):
    limits = Limits.given(tmp_path / "data", programs=["/bin/true", "/no/such/program"])
    plan = compile_spec(acting("exec:/bin/true|--any|argument")).plan
    assert plan is not None
    limits.check_plan(plan)
    for other in ("exec:/bin/../bin/true", "exec:true", "exec:/bin/true2", "exec:/bin/false", "exec:/usr/bin//true"):
        assert refused(limits, other) == "exec_not_allowed"
    assert refused(limits, "exec:/no/such/program") == "exec_missing"


@pytest.mark.parametrize(
    "program", ["true", "/bin/../bin/true", "/bin//true", "bin/a|b", "{data}/tool", "{state}/tool"]
)
def test_a_program_that_a_pipeline_could_write_or_that_is_no_plain_path_is_refused(tmp_path: Path, program: str):
    data, state = tmp_path / "data", tmp_path / "state"
    with pytest.raises(BadLimit):
        Limits.given(data, programs=[program.format(data=data, state=state)], state_dir=state)


def test_a_program_needs_a_data_folder():
    with pytest.raises(BadLimit, match="--data-dir"):
        Limits.given(None, programs=["/bin/true"])


@pytest.mark.parametrize("name", ["PATH", "LD_PRELOAD", "PYTHONPATH", "1X", "A=B", ""])
def test_a_variable_that_changes_which_code_runs_can_not_be_allowed(tmp_path: Path, name: str):
    with pytest.raises(BadLimit):
        Limits.given(tmp_path, variables=[name])


def test_secrets_are_taken_from_where_the_host_keeps_them_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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


@pytest.mark.parametrize(("data", "state"), [("b", "b/state"), ("b/data", "b"), ("b", "b"), ("link", "b/state")])
def test_state_and_data_folder_never_lie_inside_each_other(tmp_path: Path, data: str, state: str):
    (tmp_path / "b/state").mkdir(parents=True)
    (tmp_path / "link").symlink_to("b")
    with pytest.raises(BadLimit, match="inside each other"):
        Limits.given(tmp_path / data, state_dir=tmp_path / state)


def test_no_path_leads_into_the_state_folder_that_a_link_brought_below_the_data_folder(tmp_path: Path):
    data, state = tmp_path / "data", tmp_path / "state"
    data.mkdir()
    limits = Limits.given(data, state_dir=state)  # not there yet when it was asked for
    (data / "state").mkdir()
    state.symlink_to(data / "state")
    with pytest.raises(ActivationError, match="own state"):
        limits.path("state/agent.json")


@pytest.mark.parametrize(
    "path",
    [
        "..;/manager",
        "..;a=b/x",
        "%2e%2e;a=b/x",
        "%252e%252e/x",
        "a%252fb",
        "%2e;/x",
        ".;/x",
        "%5c..%5cx",
        "a%25%32%66b",
    ],
)
def test_a_url_that_another_reader_might_take_to_point_elsewhere_is_below_nothing(path: str):
    prefix = UrlPrefix.parse("https://h/in")
    assert prefix.covers("https://h/in/a;v=1/b%20c")
    assert not prefix.covers(f"https://h/in/{path}")


def test_a_program_may_be_allowed_with_exactly_these_arguments(tmp_path: Path):
    limits = Limits.given(tmp_path, programs=["/bin/echo|--fixed|a b", "/bin/true"])
    limits.check_exec(("/bin/echo", "--fixed", "a b"))
    limits.check_exec(("/bin/true", "anything"))
    for argv in (
        ("/bin/echo",),
        ("/bin/echo", "--fixed"),
        ("/bin/echo", "--fixed", "a b", "c"),
    ):
        with pytest.raises(ActivationError, match="exec_not_allowed"):
            limits.check_exec(argv)
