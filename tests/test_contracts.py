"""Promises about the package as a whole."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_texts

import lm_retrieval

PACKAGE = ROOT / "lm_retrieval"
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_public_names_resolve_and_are_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(lm_retrieval.__all__) <= 12
    for name in lm_retrieval.__all__:
        assert getattr(lm_retrieval, name).__doc__
        assert f"`{name}`" in readme, f"README does not name {name}"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lm_retrieval.nonsense  # noqa: B018


def test_the_error_tree_in_the_docstring_is_the_real_one() -> None:
    from lm_retrieval import errors

    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    real = [name for name, value in vars(errors).items() if isinstance(value, type) and name != "LmRetrievalError"]
    assert drawn == real
    assert all(issubclass(getattr(errors, name), errors.LmRetrievalError) for name in real)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_neither_prints_nor_exits_nor_loads_pickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib", "cloudpickle"} & set(names)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called != "print"
        assert "cli" in path.parts or called not in ("sys.exit", "exit", "quit")
        if called in ("torch.load", "np.load"):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only", "True") == "True"
            assert options.get("allow_pickle", "False") == "False"
            assert called == "np.load" or "weights_only" in options


def test_nothing_reaches_for_the_network(tmp_path: Path) -> None:
    """Train, embed and search with every socket refused."""
    (tmp_path / "notes").mkdir()
    for number, text in enumerate(make_texts(40)):
        (tmp_path / "notes" / f"{number}.txt").write_text(text)
    code = f"""
import socket
def refuse(*args, **kwargs): raise RuntimeError("network")
socket.socket.connect = refuse
socket.create_connection = refuse
from lm_retrieval.cli import main
main(["train", {str(ROOT / "configs" / "smoke.toml")!r}, "--corpus", "notes", "--output", "checkpoints/a", "-q"])
main(["embed", "notes", "--encoder", "a", "-q"])
main(["search", "river", "-q"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_configs_explain_every_key() -> None:
    for path in (ROOT / "configs").glob("*.toml"):
        assert path.read_text().startswith("# ")


def test_the_readme_tree_names_what_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("```text", 1)[1].split("```", 1)[0]
    packages = [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    modules = [path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    missing = [name for name in (*packages, *modules) if name not in tree]
    assert missing == []
