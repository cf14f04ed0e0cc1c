# SPDX-License-Identifier: Apache-2.0
"""
Every schema of the public JSON-Schema-Test-Suite (it comes with the sources of jsonschema) is either
refused with the name of a keyword, or all texts of its grammar are valid by jsonschema.
"""
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import jsonschema
import pytest

from conftest import ROOT

WALK = os.environ.get("SCHEMA_WALK", str(ROOT / "build/tests/schema_walk"))
DRAFTS = {"draft2020-12": jsonschema.Draft202012Validator, "draft2019-09": jsonschema.Draft201909Validator,
          "draft7": jsonschema.Draft7Validator}


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    version = importlib.metadata.version("jsonschema")
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
                    f"jsonschema=={version}", "-d", str(folder)], check=False)
    found = list(folder.glob("*.tar.gz"))
    if not found:
        pytest.skip("the sources of jsonschema cannot be had")
    with tarfile.open(found[0]) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.glob("jsonschema-*/json/tests"))


def walk(schemas, n, seed):
    lines = "".join(json.dumps(s) + "\n" for s in schemas)
    out = subprocess.run([WALK, str(n), str(seed)], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in out.stdout.split("\n") if line]


@pytest.mark.parametrize("draft", DRAFTS)
def test_suite(suite, draft):
    schemas = []
    for file in sorted((suite / draft).glob("*.json")):
        for case in json.loads(file.read_text()):
            schemas.append((f"{file.stem}: {case['description']}", case["schema"]))
    results = walk([s for _, s in schemas], 20, 1)
    assert len(results) == len(schemas) > 100
    refused, texts, by_keyword, total = 0, 0, {}, {}
    for (name, schema), result in zip(schemas, results):
        keyword = name.split(":")[0]
        total[keyword] = total.get(keyword, 0) + 1
        if "refused" in result:
            refused += 1
            assert "schema keyword" in result["refused"], (name, result)
            continue
        for text in result["texts"]:
            texts += 1
            instance = json.loads(text)
            check = DRAFTS[draft](schema, format_checker=DRAFTS[draft].FORMAT_CHECKER)
            errors = list(check.iter_errors(instance))
            assert not errors, (name, schema, text, errors[0].message)
        by_keyword[keyword] = by_keyword.get(keyword, 0) + 1
    print(f"{draft}: {texts} texts; " + ", ".join(f"{k} {n}/{total[k]}" for k, n in sorted(by_keyword.items())))
    said = f"| {draft} | {len(schemas)} | {len(schemas) - refused} | {refused} | {texts} |"
    assert said in (ROOT / "docs/testing.md").read_text(), f"docs/testing.md wants {said}"


def test_sampled_answers_of_the_model(url):
    """At temperature 1 what the model writes in a schema is valid, or was cut and says so."""
    import openai
    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
    schemas = [
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": -5, "maximum": 999},
                                          "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}},
         "required": ["a", "b"], "additionalProperties": False},
        {"type": "object", "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
                                          "when": {"type": "string", "format": "date"}}, "required": ["id", "when"]},
        {"type": "array", "items": {"enum": ["red", "green", "blue", 7, None]}, "minItems": 2, "maxItems": 5},
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {
            "v": {"type": "number", "minimum": 0, "maximum": 1},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}}, "required": ["v", "next"]}}}]
    whole = 0
    for schema in schemas:
        r = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Write it"}], n=16, temperature=1, max_tokens=160,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})
        for c in r.choices:
            if c.finish_reason == "stop":
                whole += 1
                jsonschema.Draft202012Validator(schema).validate(json.loads(c.message.content))
    assert whole > 40
