"""The OpenAPI schema: examples everywhere, a snapshot, and a fuzzer that must find no server error."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from conftest import rows_of, write_jsonl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import Running, serving, settings_of

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.builder import build_index

SNAPSHOT = Path(__file__).parent / "openapi_snapshot.json"
EXAMPLES = 25


@pytest.fixture(scope="module")
def running(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("schema")
    write_jsonl(folder / "corpus" / "corpus.jsonl", rows_of(20))
    rnn = make_checkpoint("lstm")
    build_index(open_corpus(folder / "corpus"), encoder=Encoder.load(rnn), output=folder / "docs")
    limits = {"max_new_tokens": 20, "request_seconds": 10}
    models = {"rnn": rnn, "transformer": make_checkpoint("transformer")}
    with serving(settings_of(models, index=folder / "docs", limits=limits)) as started:
        yield started


@pytest.fixture(scope="module")
def openapi(running: Running) -> dict[str, Any]:
    schema: dict[str, Any] = running.client.get("/openapi.json").json()
    return schema


def summary(openapi: dict[str, Any]) -> dict[str, Any]:
    """Paths with their methods and statuses, schemas with their fields: what clients build on."""
    return {
        "paths": {
            f"{method.upper()} {path}": sorted(operation["responses"])
            for path, methods in openapi["paths"].items()
            for method, operation in methods.items()
        },
        "schemas": {
            name: {
                "fields": sorted(schema.get("properties", {})),
                "required": sorted(schema.get("required", [])),
            }
            for name, schema in openapi["components"]["schemas"].items()
        },
    }


def test_paths_and_fields_are_those_of_the_snapshot(openapi: dict[str, Any]) -> None:
    """After a change that is meant: `LMR_UPDATE_SNAPSHOT=1 pytest tests/test_server_schema.py`."""
    found = summary(openapi)
    if os.environ.get("LMR_UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(SNAPSHOT.read_text())


def test_every_schema_has_an_example_and_says_what_it_is(openapi: dict[str, Any]) -> None:
    for name, schema in openapi["components"]["schemas"].items():
        assert schema.get("examples"), name
        assert schema.get("description"), name


def test_the_examples_of_requests_are_answered(running: Running, openapi: dict[str, Any]) -> None:
    for path, methods in openapi["paths"].items():
        body = methods.get("post", {}).get("requestBody")
        if body is None:
            continue
        name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for example in openapi["components"]["schemas"][name]["examples"]:
            small = {"max_tokens": 5, "tokens": [5, 6, 7]}  # within the limits and the vocabulary of these models
            asked = {field: small.get(field, value) for field, value in example.items()}
            answer = running.client.post(path.replace("{model}", "rnn"), json=asked)
            assert answer.status_code == 200, (path, answer.text)


def test_no_request_makes_the_server_fail(running: Running) -> None:
    """Requests made from the schema, and others made to break it: each answer is one that the schema names."""
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 16
    answers: Counter[int] = Counter()
    for operation, mode in product(operations, GenerationMode):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            answers[case.call_and_validate(timeout=20, checks=checks).status_code] += 1

        try:
            check()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing can be wrong about a request without parameters
    assert answers[200] > 50
    assert answers[422] > 50
