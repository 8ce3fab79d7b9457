"""Dockerfile and compose.yaml, as far as they can be judged without building them."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch

import yaml
from conftest import ROOT

from lm_retrieval.server.settings import ServerSettings


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments)."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined if line.strip()]


def arguments(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def sources() -> Iterator[str]:
    for value in arguments("COPY"):
        if not value.startswith("--from="):
            yield from value.split()[:-1]


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert "*" in patterns
    assert list(sources())
    for source in sources():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(path, source) or path.startswith(f"{source}/") for path in kept), source
    for path in kept:
        assert (ROOT / path).exists(), path
        assert path.split("/")[0] in set(sources()), path


def test_what_the_package_is_built_from_is_copied() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *wheel["packages"]}
    needed |= {path.split("/")[0] for path in wheel["force-include"]}
    assert needed <= set(sources())


def test_exact_versions_and_the_torch_without_cuda() -> None:
    installs = [command for command in arguments("RUN") if "pip install" in command]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in command for command in installs)
    assert installs[0].endswith('--index-url "$TORCH_INDEX" torch')
    assert "'.[serve,ui]'" in installs[1]
    # asked for, because the usual index has the CUDA build
    assert "TORCH_INDEX" in arguments("ARG")
    assert any('test -n "$TORCH_INDEX"' in command for command in arguments("RUN"))


def test_a_user_without_rights_serves_on_the_usual_port_and_is_looked_after() -> None:
    names = [name for name, _ in instructions()]
    last_stage = instructions()[len(names) - 1 - names[::-1].index("FROM") :]
    assert [value for name, value in last_stage if name == "USER"] == ["lmr"]
    assert json.loads(dict(last_stage)["CMD"]) == ["lmr", "serve", "--host", "0.0.0.0"]
    assert dict(last_stage)["EXPOSE"] == str(ServerSettings.model_fields["port"].default)
    assert {"/data/indexes", "/data/checkpoints", "/data/corpora"} == set(json.loads(dict(last_stage)["VOLUME"]))


def test_the_health_checks_fail_where_nothing_answers() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["lmr"]
    (check,) = arguments("HEALTHCHECK")
    for command in (json.loads(check.split("CMD", 1)[1]), service["healthcheck"]["test"][1:]):
        assert command[:2] == ["python", "-c"]
        code = command[2].replace("8000", "1")
        environment = {name: value for name, value in os.environ.items() if name != "PORT"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "refused" in done.stderr
        assert "/health" in code


def test_compose_publishes_on_this_machine_only_and_writes_nothing() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["lmr"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["environment"]["LMR_API_KEY"].startswith("${LMR_API_KEY:?")
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["restart"] == "unless-stopped"
    for volume in service["volumes"]:
        here, there, mode = volume.split(":")
        assert (ROOT / here).is_dir()
        assert there in json.loads(arguments("VOLUME")[0])
        assert mode == "ro"
    assert int(service["stop_grace_period"].rstrip("s")) > ServerSettings.model_fields["shutdown_seconds"].default


def test_shell_commands_can_be_read() -> None:
    for command in arguments("RUN"):
        assert shlex.split(command)
