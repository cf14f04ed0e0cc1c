# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness on tasks made from local files; log-likelihoods equal `crayon score`."""
import json
import subprocess
import urllib.request

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from conftest import MODEL, PROGRAM, ROOT, serving
from rows import ROWS

# How far a sum of log-probabilities may be from Transformers' in float32 (docs/numerics.md): per token of the answer.
FLOAT_BOUND, INT8_BOUND = 0.005, 0.15


@pytest.fixture
def tasks(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"question": q, "choices": c, "answer": 0}) + "\n" for q, c in ROWS))
    head = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    (tmp_path / "choice.yaml").write_text(
        "task: local_choice\n" + head + "output_type: multiple_choice\ndoc_to_text: question\n"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n")
    (tmp_path / "text.yaml").write_text(
        "task: local_text\n" + head + "output_type: generate_until\ndoc_to_text: question\n"
        "doc_to_target: \"{{choices[0]}}\"\ngeneration_kwargs:\n  until: ['.']\n  max_gen_toks: 6\n"
        "metric_list:\n  - metric: exact_match\n")
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def run(model, url, tasks, name, **more):
    args = {"model": "m", "base_url": url, "num_concurrent": 1, "max_retries": 1} | more
    return lm_eval.simple_evaluate(model=model, model_args=args, tasks=[name], task_manager=tasks,
                                   batch_size=2 if model == "local-completions" else 1,
                                   apply_chat_template=model == "local-chat-completions",
                                   log_samples=True)


def scores(host, as_ids):
    """The same sums by the program itself, from text or from ids without a token for the beginning."""
    def ids(text):
        data = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
        headers = {"Content-Type": "application/json"}
        return json.load(urllib.request.urlopen(urllib.request.Request(f"{host}/tokenize", data, headers)))["tokens"]

    lines = []
    for question, choices in ROWS:
        for c in choices:
            whole, begin = ids(question + " " + c), ids(question)
            lines.append({"prompt": begin, "completion": whole[len(begin):]} if as_ids
                         else {"prompt": question, "completion": " " + c})
    out = subprocess.run([PROGRAM, "score", "-q", "-m", MODEL], input="\n".join(map(json.dumps, lines)),
                         capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("as_ids", [False, True])
def test_log_likelihoods_equal_the_program_s(url, host, tasks, as_ids):
    r = run("local-completions", f"{url}/completions", tasks, "local_choice", tokenizer_backend="remote",
            tokenized_requests=as_ids)
    got = [resp for s in r["samples"]["local_choice"] for resp in s["filtered_resps"]]
    want = scores(host, as_ids)
    assert len(got) == len(want) == 2 * len(ROWS)
    for (value, greedy), line in zip(got, want):
        assert abs(float(value) - line["sum"]) < 1e-3
        assert str(greedy) == str(line["is_greedy"])


@pytest.mark.parametrize("name,path,bound", [("stories260K", str(ROOT / "tests/data/stories260K.gguf"), FLOAT_BOUND),
                                             ("crayon-15m-q8_0", MODEL, INT8_BOUND)])
def test_log_likelihoods_are_within_the_bound_of_pytorch_s(tasks, name, path, bound):
    golden = json.loads((ROOT / "tests/golden/loglikelihoods.json").read_text())[name]
    with serving(path) as url:
        r = run("local-completions", f"{url}/completions", tasks, "local_choice", tokenizer_backend="remote",
                tokenized_requests=True)
    got = [float(resp[0]) for s in r["samples"]["local_choice"] for resp in s["filtered_resps"]]
    assert len(got) == len(golden) == 2 * len(ROWS)
    apart = [abs(g - line["sum"]) / (len(line["ids"]) - line["n_begin"]) for g, line in zip(got, golden)]
    print(f"{name}: at most {max(apart):.2g} a token apart, bound {bound}")
    assert max(apart) < bound


def test_generation_through_completions(url, tasks):
    r = run("local-completions", f"{url}/completions", tasks, "local_text", tokenizer_backend="remote",
            tokenized_requests=False)
    assert len(r["samples"]["local_text"]) == len(ROWS)


def test_local_chat_completions(url, tasks):
    r = run("local-chat-completions", f"{url}/chat/completions", tasks, "local_text")
    assert len(r["samples"]["local_text"]) == len(ROWS)
