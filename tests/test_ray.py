"""Encoding on a Ray cluster: `ray_cluster.py` in a session of its own; Ray ends what it takes for its processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_encoding_on_a_cluster(one_ray: None) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    tests = Path(__file__).with_name("ray_cluster.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(tests)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
        start_new_session=True,
        cwd=tests.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "6 passed" in done.stdout
