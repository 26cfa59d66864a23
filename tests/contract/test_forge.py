"""What the forge reads: workflows, issue forms and citations parse, and name what exists in this repository."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import segtune

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in sorted(GITHUB.glob("workflows/*.yml"))}
FORMS = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def commands(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for step in steps(workflow) if "run" in step]


def read_citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_collectors_found_the_files() -> None:
    assert list(WORKFLOWS) == ["docs.yml", "release.yml", "tests.yml"]
    assert list(FORMS) == ["bug.yml", "config.yml", "question.yml", "recipe.yml"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_is_complete(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow[True], "`on`, which YAML 1.1 reads as true"
    assert workflow["permissions"] == {"contents": "read"}  # a job asks for more, where it needs it
    for job in workflow["jobs"].values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= workflow["jobs"].keys()
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        else:
            assert job["runs-on"] and job["steps"]
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", action) for action in used)


def test_workflows_name_targets_and_scripts_that_exist() -> None:
    ran = "\n".join(command for workflow in WORKFLOWS.values() for command in commands(workflow))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)", ran))
    assert named == {"lint", "test-lowest", "test-slow", "docs", "build"}
    assert named <= set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    scripts = re.findall(r"python (\S+\.py)", ran)
    assert scripts and all((ROOT / script).is_file() for script in scripts)
    extras = {extra for line in re.findall(r"\.\[([\w,]+)\]", ran) for extra in line.split(",")}
    assert extras and extras <= PROJECT["optional-dependencies"].keys()


def test_every_python_of_the_classifiers_is_tested_everywhere() -> None:
    matrix = WORKFLOWS["tests.yml"]["jobs"]["test"]["strategy"]["matrix"]
    stated = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), flags=re.MULTILINE)
    assert matrix["python"] == stated and len(stated) == 5
    assert PROJECT["requires-python"] == f">={stated[0]}"
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_release_waits_for_tests_and_stores_no_password() -> None:
    jobs = WORKFLOWS["release.yml"]["jobs"]
    assert set(jobs["publish"]["needs"]) == {"tests", "build"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (GITHUB / "workflows" / "release.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in FORMS if name != "config.yml"])
def test_issue_form(name: str) -> None:
    form = FORMS[name]
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["type"] in {"input", "textarea"} and field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_bug_form_asks_for_what_a_fault_is_found_with() -> None:
    assert {"what", "env", "recipe", "sample"} == {field["id"] for field in FORMS["bug.yml"]["body"]}


def test_pull_request_asks_the_five_questions() -> None:
    text = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^- \[ \] \*\*.*\?\*\*", text, flags=re.MULTILINE)) == 5


def test_hooks_are_those_of_the_tools() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"] for repository in config["repos"] for hook in repository["hooks"]}
    assert {"ruff-check", "ruff-format", "nbstripout", "check-yaml"} <= hooks
    revisions = {repository["repo"].rpartition("/")[2]: repository["rev"] for repository in config["repos"]}
    assert all(re.fullmatch(r"v?\d+(\.\d+)+", revision) for revision in revisions.values())
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ruff=={revisions['ruff-pre-commit'].lstrip('v')}" in constraints


def test_citation_agrees_with_the_package() -> None:
    citation = read_citation()
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == segtune.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_addresses_are_of_one_repository() -> None:
    repository = PROJECT["urls"]["Repository"]
    files = [path for path in GITHUB.rglob("*") if path.is_file()]
    files += [ROOT / name for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "pyproject.toml")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    own = re.findall(r"https://github\.com/[\w.-]+/segtune\b", text)
    assert len(own) >= 5 and set(own) == {repository}
    blobs = re.findall(rf"{re.escape(repository)}/blob/main/([\w./-]+)", text)
    assert blobs and [path for path in blobs if not (ROOT / path).is_file()] == []


@pytest.fixture(scope="module")
def release_notes() -> Any:
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / "scripts" / "release_notes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.release_notes


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that is ready to be tagged v1.2.0, of this one's forms."""
    (tmp_path / "src" / "segtune").mkdir(parents=True)
    for name in ("src/segtune/__init__.py", "CITATION.cff"):
        text = shutil.copy(ROOT / name, tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(segtune.__version__, "1.2.0"), encoding="utf-8")
    sections = ["# Changelog", "## [Unreleased]", "## [1.2.0] - 2026-12-01", "### Added", "- A loss."]
    sections += ["## [1.1.0] - 2026-11-01", "- Another."]
    (tmp_path / "CHANGELOG.md").write_text("\n\n".join(sections), encoding="utf-8")
    return tmp_path


def test_notes_of_a_release_are_its_section(release_notes: Any, checkout: Path) -> None:
    assert release_notes("v1.2.0", checkout) == "### Added\n\n- A loss."


@pytest.mark.parametrize(
    ("tag", "old", "new", "message"),
    [
        ("v1.3.0", "none", "", r"__init__\.py says 1\.2\.0: a release is tagged v1\.2\.0"),
        ("1.2.0", "none", "", "a release is tagged v1"),
        ("v1.2.0", "2026-12-01", "unreleased", "YYYY-MM-DD"),
        ("v1.2.0", "### Added\n\n- A loss.", "", "and the changes"),
    ],
)
def test_release_that_disagrees_is_refused(
    release_notes: Any, checkout: Path, tag: str, old: str, new: str, message: str
) -> None:
    changelog = checkout / "CHANGELOG.md"
    changelog.write_text(changelog.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        release_notes(tag, checkout)


def test_citation_of_another_version_is_refused(release_notes: Any, checkout: Path) -> None:
    citation = checkout / "CITATION.cff"
    citation.write_text(citation.read_text(encoding="utf-8").replace("1.2.0\nlicense", "1.1.0\nlicense"))
    with pytest.raises(ValueError, match=r"CITATION\.cff says 1\.1\.0"):
        release_notes("v1.2.0", checkout)
