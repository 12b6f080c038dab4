"""The composite action and our own workflow, step by step as a shell script would run them.

What GitHub puts in place of expressions stands in `CONTEXT`; steps that are someone else's actions
(`uses:`) are listed and not run. The workflow checks out a repository: here a small one with a base
and a head is where the steps run.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gating_repository import HARMLESS, ROOT, case_file, make_repository

ACTION = "./.github/actions/gate"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# what the expressions of the run steps may ask for besides inputs and outputs of earlier steps
CONTEXT = {
    # no pull request, as after a push: the base is then HEAD~1
    "github.event.pull_request.base.sha": "",
    "github.sha": "0" * 40,
    "runner.os": "Linux",
}


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@dataclass
class Job:
    """A job that is run here: where it stands, and what its steps left.

    Attributes:
        folder: of the checkout
        scratch: of the files that GitHub gives a job
        ran, not_run: names of steps
        outputs: of steps, by "steps.ID.outputs.NAME"
        exit_code: of the first step that failed
    """

    folder: Path
    scratch: Path
    ran: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    exit_code: int = 0
    log: str = ""

    @property
    def summary(self) -> str:
        """What the job's page would show."""
        return (self.scratch / "GITHUB_STEP_SUMMARY").read_text()

    def step(self, step: dict[str, Any], inputs: dict[str, str]) -> None:
        """Run a step, unless one failed before it, or expand our action."""
        uses = step.get("uses", "")
        if uses == ACTION:
            action = _load(ROOT / ".github" / "actions" / "gate" / "action.yml")
            given = {name: str(value) for name, value in step.get("with", {}).items()}
            assert set(given) <= set(action["inputs"])
            defaults = {name: one.get("default", "") for name, one in action["inputs"].items()}
            for inner in action["runs"]["steps"]:
                self.step(inner, {**defaults, **given, **inputs})
        elif uses:
            self.not_run.append(uses.split("@")[0])
        elif self.exit_code == 0 or step.get("if") == "always()":
            self._shell(step, inputs)

    def _shell(self, step: dict[str, Any], inputs: dict[str, str]) -> None:
        named = step.get("env", {})
        files = {f"GITHUB_{name}": self.scratch / f"GITHUB_{name}" for name in ("OUTPUT", "ENV")}
        files["GITHUB_STEP_SUMMARY"] = self.scratch / "GITHUB_STEP_SUMMARY"
        for path in files.values():
            path.touch()
        files["GITHUB_OUTPUT"].write_text("")
        environment = {
            **os.environ,
            # `python` is the interpreter that runs this, its harness the one under test
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            **{name: str(path) for name, path in files.items()},
            **{name: self.resolved(str(value), inputs) for name, value in named.items()},
        }
        # as GitHub runs `shell: bash`
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.log += done.stdout
        self.ran.append(step.get("name", step["run"].splitlines()[0]))
        self.exit_code = self.exit_code or done.returncode
        for line in files["GITHUB_OUTPUT"].read_text().splitlines():
            name, _, value = line.partition("=")
            self.outputs[f"steps.{step['id']}.outputs.{name}"] = value

    def resolved(self, text: str, inputs: dict[str, str]) -> str:
        """`text` with values for its expressions: names and 'words', the first that is not empty of
        those between ||."""
        known = {**CONTEXT, "runner.temp": str(self.scratch), **self.outputs}
        known |= {f"inputs.{name}": value for name, value in inputs.items()}

        def value(found: re.Match[str]) -> str:
            for term in found.group(1).split("||"):
                term = term.strip()
                one = term[1:-1] if term.startswith("'") else known[term]
                if one:
                    return one
            return ""

        return re.sub(r"\$\{\{(.*?)\}\}", value, text)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("action"), HARMLESS)


def _our_gate(repository: Path, scratch: Path, **inputs: str) -> Job:
    """Our own workflow's gate job, with what is installed already."""
    job = Job(repository, scratch)
    for step in _load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["gate"]["steps"]:
        job.step(step, {"install": "", **inputs})
    return job


def test_our_gate_job_passes_step_by_step_and_its_summary_says_so(
    repository: Path, tmp_path: Path
) -> None:
    cases = case_file(tmp_path / "cases.json")
    job = _our_gate(repository, tmp_path, cases=str(cases), margin="0.9", out=str(tmp_path / "out"))
    assert job.exit_code == 0, job.log
    assert job.ran == ["install", "gate", "verdict"]
    assert job.not_run == [
        "actions/checkout",
        "actions/setup-python",
        "actions/cache",
        "actions/upload-artifact",
    ]
    assert job.outputs == {"steps.verb.outputs.code": "0"}
    assert job.summary.startswith("## tritonbn-bench gate\n\n**No regression.** 1 case: 1 PASS.")
    assert "- Head: working tree (" in job.summary
    assert "The two sides are two" in job.summary
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("gate.json", "gate.md", "gate.xml", "log.txt", "trend.json")
    }


def test_a_slower_head_fails_the_job_after_everything_is_written(
    repository: Path, tmp_path: Path
) -> None:
    job = _our_gate(
        repository,
        tmp_path,
        cases=str(case_file(tmp_path / "cases.json")),
        out=str(tmp_path / "out"),
        arguments="--plant 2 --rounds 8",
    )
    assert job.exit_code == 1, job.log
    # the step that measures does not fail: what follows it uploads
    assert job.ran == ["install", "gate", "verdict"]
    assert job.not_run[-1] == "actions/upload-artifact"
    assert "**Slower**: confirmed for" in job.summary
    facts = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert facts["exit_code"] == 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        pytest.param({"tier": "abacus"}, "expected tier static, cpu or gpu, got abacus", id="tier"),
        pytest.param({"base": "v9"}, "git knows no such commit", id="base"),
    ],
)
def test_wrong_inputs_fail_the_job_with_2(
    inputs: dict[str, str], words: str, repository: Path, tmp_path: Path
) -> None:
    job = _our_gate(repository, tmp_path, out=str(tmp_path / "out"), **inputs)
    assert job.exit_code == 2
    assert words in job.log


def test_the_tiers_run_the_commands_they_promise(repository: Path, tmp_path: Path) -> None:
    """With a python that only says how it was called."""
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text('#!/bin/sh\necho "called: $*"\n')
    shim.chmod(0o755)
    action = _load(ROOT / ".github" / "actions" / "gate" / "action.yml")
    (step,) = [one for one in action["runs"]["steps"] if one.get("id") == "verb"]
    step = {**step, "run": f'PATH="{shim.parent}:$PATH"\n{step["run"]}'}
    said = []
    for inputs in (
        {"tier": "static", "model": "net:make"},
        {"tier": "gpu", "strict": "true", "cases": "resnet50"},
        {"tier": "cpu", "baseline": "baselines", "arguments": "--minutes 5"},
    ):
        defaults = {name: one.get("default", "") for name, one in action["inputs"].items()}
        job = Job(repository, tmp_path)
        job.step(step, {**defaults, **inputs, "out": "out"})
        said.append(job.log.strip())
    assert said == [
        "called: -m tritonbn_bench check --static --out out --model net:make",
        "called: -m tritonbn_bench gate --device cuda --cases resnet50 --margin 0.03 --out out "
        "--base HEAD~1 --strict",
        "called: -m tritonbn_bench gate --device cpu --cases quick --margin 0.03 --out out "
        "--baseline baselines --minutes 5",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_known_things_with_known_inputs_and_few_rights(path: Path) -> None:
    workflow = _load(path)
    inputs = set(_load(ROOT / ".github" / "actions" / "gate" / "action.yml")["inputs"])
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert set(step) & {"uses", "run"}
            if step.get("uses") == ACTION:
                assert set(step["with"]) <= inputs
                assert step["with"]["tier"] in ("static", "cpu", "gpu")


def test_our_workflow_runs_the_whole_check_and_the_gate() -> None:
    jobs = _load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["check"]["steps"][-1]["run"] == "bash .ci/run"
    checkout, action = jobs["gate"]["steps"]
    assert checkout["with"]["fetch-depth"] == 0
    assert action == {"uses": ACTION, "with": {"tier": "cpu"}}
