"""Where the sides of a gate come from: checkouts that vanish, hashes that tell sources apart."""

import argparse
from pathlib import Path

import pytest

from tests.gating_repository import HARMLESS, ROOT, case_file, git, make_repository
from tritonbn_bench.gating.margins import load_margins, save_margins
from tritonbn_bench.gating.revisions import checkout, head_of, in_checkout, tree_hash
from tritonbn_bench.gating.session import declare, request_of
from tritonbn_bench.gating.suites import trials


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("revisions"), HARMLESS)


def test_a_checkout_holds_the_revision_and_is_gone_afterwards(repository: Path) -> None:
    with checkout(repository, "HEAD~1") as base:
        assert base.commit == git(repository, "rev-parse", "--short=12", "HEAD~1")
        assert base.digest != in_checkout(repository, "head").digest
        assert all(package.is_dir() for package in base.packages)
    assert base.tree is not None and not base.tree.exists()
    assert git(repository, "worktree", "list").count("\n") == 0


def test_a_checkout_is_gone_after_an_error_too(repository: Path) -> None:
    with pytest.raises(KeyboardInterrupt), checkout(repository, "HEAD") as base:
        raise KeyboardInterrupt
    assert base.tree is not None and not base.tree.exists()
    assert git(repository, "worktree", "list").count("\n") == 0


def test_a_revision_that_is_none_is_refused_with_what_to_do(repository: Path) -> None:
    with pytest.raises(ValueError, match=r"got v9: git knows no such commit .*fetch-depth: 0"):
        with checkout(repository, "v9"):
            pass


def test_a_revision_without_tritonbn_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "nothing")
    with pytest.raises(ValueError, match="expected tritonbn in HEAD, got a commit without it"):
        with checkout(tmp_path, "HEAD"):
            pass
    assert git(tmp_path, "worktree", "list").count("\n") == 0


def test_the_hash_of_sources_sees_names_and_contents_and_no_byte_code(tmp_path: Path) -> None:
    package = tmp_path / "a"
    package.mkdir()
    (package / "one.py").write_text("x = 1")
    found = [tree_hash([package])]
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "one.pyc").write_bytes(b"1")
    assert tree_hash([package]) == found[0]
    (package / "one.py").write_text("x = 2")
    found.append(tree_hash([package]))
    (package / "one.py").rename(package / "two.py")
    found.append(tree_hash([package]))
    assert len(set(found)) == 3


def test_the_head_is_the_checkout_one_stands_in_or_what_is_installed(
    repository: Path, tmp_path: Path
) -> None:
    assert head_of(repository / "tritonbn").tree == repository.resolve()
    elsewhere = head_of(tmp_path)
    assert (elsewhere.label, elsewhere.tree) == ("installed", None)
    assert elsewhere.packages[0] == ROOT / "tritonbn"


def test_cases_of_a_file_are_read(tmp_path: Path) -> None:
    path = case_file(tmp_path / "cases.json", {}, {"mode": "forward_eval", "via": "layer"})
    found = trials(str(path), "cpu")
    assert list(found) == [
        "forward_train/fp32/nchw/N4C16S64",
        "forward_eval/fp32/nchw/N4C16S64/layer",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("no JSON", "expected JSON in", id="no-json"),
        pytest.param("{}", "expected a list of cases", id="no-list"),
        pytest.param('[{"mode": "sideways"}]', "case 1: ", id="fields-missing"),
        pytest.param('[{"colour": 1}]', "expected fields of a case, got colour", id="unknown"),
    ],
)
def test_a_file_that_describes_no_case_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cases.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        trials(str(path), "cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["quick", "resnet50"])
def test_every_suite_has_forward_and_backward_cases(name: str, device: str) -> None:
    modes = {trial.case.mode for trial in trials(name, device).values()}
    assert {"forward_train", "backward_train"} <= modes


def test_margins_come_back_and_say_when_they_are_another_machines(tmp_path: Path) -> None:
    here: dict[str, str | int | float | bool | None] = {"device": "cpu", "cpu": "A", "torch": "2"}
    path = tmp_path / "margins.json"
    save_margins(path, {"a": 0.05}, here)
    margins = load_margins(path)
    assert margins.by_case == {"a": 0.05}
    assert margins.differs(here) == ""
    assert margins.differs({**here, "cpu": "B"}) == "gpu A there, B here"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"expected .* to have the schema tritonbn.margins/1"):
        load_margins(path)


@pytest.mark.parametrize(("cache", "ending"), [(None, ""), ("hot", ""), ("produced", "/produced")])
def test_cases_of_other_caches_have_names_of_their_own(cache: str | None, ending: str) -> None:
    parser = argparse.ArgumentParser()
    declare(parser)
    chosen = ["--device", "cpu", "--repository", str(ROOT), *(["--cache", cache] if cache else [])]
    found = request_of(parser.parse_args(chosen)).trials
    assert {name: trial.id for name, trial in found.items()} == {
        f"{name}{ending}": name for name in trials("quick", "cpu")
    }
