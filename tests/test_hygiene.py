"""What keeps the repository fit to publish: running times, workflows, glossary, changelog."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import icrl_lib

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_ran_in_less_than_a_minute_and_no_cell_in_more_than_20_seconds(path):
    measured = nbformat.read(path, as_version=4).metadata
    assert measured.seconds_to_run < 60
    assert measured.seconds_of_slowest_cell <= 20


def workflow(path: Path) -> dict:
    content = yaml.safe_load(path.read_text())
    content["on"] = content.pop(True)  # YAML 1.1 reads the key "on" as a truth value
    return content


def steps(path: Path) -> list[dict]:
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def check_schema(name: str, *paths: Path) -> subprocess.CompletedProcess:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", name, *paths]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_workflows_follow_githubs_schema():
    result = check_schema("vendor.github-workflows", *WORKFLOWS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_schema_refuses_a_misspelled_key(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    assert check_schema("vendor.github-workflows", broken).returncode == 1


def test_dependabot_follows_its_schema():
    result = check_schema("vendor.dependabot", GITHUB / "dependabot.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_citation_follows_its_schema():
    result = check_schema("vendor.citation-file-format", ROOT / "CITATION.cff")
    assert result.returncode == 0, result.stdout + result.stderr


def test_jupyter_book_stays_on_its_first_major_version():
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    ignored = {rule["dependency-name"]: rule for rule in updates[0]["ignore"]}
    assert ignored["jupyter-book"]["update-types"] == ["version-update:semver-major"]
    assert re.search(r"^jupyter-book==1\.", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


@every_workflow
def test_workflow_may_only_read_unless_a_job_says_more(path):
    assert workflow(path)["permissions"] == {"contents": "read"}


@every_workflow
def test_workflow_ends_in_bounded_time(path):
    assert all(job["timeout-minutes"] <= 90 for job in workflow(path)["jobs"].values())


@every_workflow
def test_actions_are_githubs_own_at_a_major_version(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used), used


@every_workflow
def test_workflow_needs_no_secret(path):
    assert "secrets." not in path.read_text()


@every_workflow
def test_shell_steps_parse(path):
    for script in (step["run"] for step in steps(path) if "run" in step):
        result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@every_workflow
def test_steps_make_what_the_makefile_has(path):
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {m for step in steps(path) for m in re.findall(r"^make (\S+)", step.get("run", ""))}
    assert made <= targets


def test_every_failing_weekly_job_opens_an_issue():
    jobs = workflow(GITHUB / "workflows" / "weekly.yml")["jobs"]
    assert set(jobs["report"]["needs"]) == set(jobs) - {"report"}
    assert jobs["report"]["if"] == "failure()"
    assert jobs["report"]["permissions"] == {"issues": "write"}


def glossary() -> list[tuple[str, str]]:
    body = (ROOT / "book" / "glossary.md").read_text().split("```{glossary}\n")[1].split("```")[0]
    return re.findall(r"^(\S.*)\n((?:  .*\n)+)", body, re.MULTILINE)


def test_glossary_is_alphabetical_and_long_enough():
    terms = [term for term, _ in glossary()]
    assert terms == sorted(set(terms), key=str.lower)
    assert len(terms) >= 50


@pytest.mark.parametrize(("term", "text"), glossary(), ids=[term for term, _ in glossary()])
def test_a_word_of_the_glossary_stands_in_the_chapter_it_links_to(term, text):
    number, file = re.search(r"\(\[Chapter (\d+)\]\(([\w.]+)\)\)", " ".join(text.split())).groups()
    assert file.startswith(f"{int(number):02d}_")
    cells = nbformat.read(ROOT / "book" / file, as_version=4).cells
    prose = " ".join(" ".join(c.source.lower() for c in cells).split())
    is_there = term.lower().split(",")[0] in prose
    assert is_there, f"{term}: not in {file}"


def test_changelog_has_the_librarys_version():
    heading = rf"^## {re.escape(icrl_lib.__version__)}, \d{{4}}-\d\d-\d\d$"
    assert re.search(heading, (ROOT / "book" / "changelog.md").read_text(), re.MULTILINE)


def test_citation_has_the_librarys_version_and_the_changelogs_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == icrl_lib.__version__
    heading = f"## {citation['version']}, {citation['date-released']}"
    assert heading in (ROOT / "book" / "changelog.md").read_text().splitlines()
