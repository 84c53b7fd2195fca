"""What a project keeps beside its code agrees with it: workflow and local checks, versions, pins, templates."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import clcalib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md")

pytestmark = pytest.mark.skipif(not (ROOT / ".ci" / "run").exists(), reason="this copy has no .ci and no .github")


def parsed(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def workflow() -> dict[Any, Any]:
    found = parsed(".github/workflows/ci.yml")
    assert isinstance(found, dict)
    return found


def stages() -> list[str]:
    """The stages of ``.ci/run``, in its order."""
    (names,) = re.findall(r"^stages=\((.*)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    return str(names).split()


def targets() -> set[str]:
    """What ``make`` can be asked for."""
    (names,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return set(str(names).split())


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def test_the_workflow_does_the_stages_of_the_local_check() -> None:
    jobs = workflow()["jobs"]
    in_jobs = {*jobs["checks"]["strategy"]["matrix"]["stage"], "tests"}
    assert in_jobs == set(stages())
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert runs == [".ci/run ${{ matrix.stage }}", ".ci/run tests"]


def test_each_stage_is_a_target_of_make() -> None:
    wanted = {"test" if stage == "tests" else stage for stage in stages()} - {"files"}
    assert wanted <= targets()
    for page in (*PAGES, "README.md", ".github/PULL_REQUEST_TEMPLATE.md"):
        named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / page).read_text(encoding="utf-8")))
        assert named <= targets(), f"{page} names {sorted(named - targets())}, which make does not have"


def test_an_unknown_stage_fails() -> None:
    done = subprocess.run([str(ROOT / ".ci" / "run"), "lnit"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "lnit is no stage; the stages are: files lint" in done.stderr


def test_the_workflow_can_only_read_and_its_actions_have_a_major_version() -> None:
    found = workflow()
    assert found["permissions"] == {"contents": "read"}
    assert found["concurrency"]["cancel-in-progress"] is True
    steps = [step for job in found["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action), action
    assert all("timeout-minutes" in job for job in found["jobs"].values())


def test_the_oldest_and_the_newest_torch_and_python_are_tested() -> None:
    matrix = workflow()["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["torch"] == ["oldest", "newest"]
    assert matrix["python"][0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    (torch,) = (name for name in PROJECT["project"]["dependencies"] if name.startswith("torch>="))
    assert pins("constraints-oldest.txt")["torch"].startswith(torch.removeprefix("torch>=") + ".")


def test_the_pins_of_the_oldest_torch_are_those_that_differ() -> None:
    usual, oldest = pins("constraints.txt"), pins("constraints-oldest.txt")
    same = sorted(name for name, version in oldest.items() if usual.get(name) == version)
    assert same == []


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/clcalib/__init__.py"
    assert f"\nversion: {clcalib.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_source_distribution_has_the_pages() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {*PAGES, "constraints.txt", "constraints-oldest.txt"} <= set(included)


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_templates_have_what_a_form_needs(path: str) -> None:
    form = parsed(f".github/ISSUE_TEMPLATE/{path}")
    if path == "config.yml":
        assert form["blank_issues_enabled"] is False
        assert all({"name", "url", "about"} == set(link) for link in form["contact_links"])
        return
    assert {"name", "description", "labels", "body"} == set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert any(field.get("validations", {}).get("required") for field in fields), "nothing must be filled in"
    assert all(field["attributes"]["label"] for field in fields)
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    for field in fields:
        options = field["attributes"].get("options", [])
        assert bool(options) == (field["type"] in ("checkboxes", "dropdown"))
        assert all(isinstance(option, str if field["type"] == "dropdown" else dict) for option in options)
