# SPDX-License-Identifier: Apache-2.0
"""
Log-likelihoods by Transformers for tests/clients/test_lm_eval.py: make_loglikelihoods.py CRAYON, the program, which
splits the texts into ids. Weights are the tensors of the same GGUF file dequantised to float32.
"""
import json
import pathlib
import subprocess
import sys

import torch

from make_models import reference

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = {"crayon-15m-q8_0": ROOT / "models/crayon-15m-q8_0.gguf", "stories260K": ROOT / "tests/data/stories260K.gguf"}
sys.path.append(str(ROOT / "tests/clients"))
from rows import ROWS  # noqa: E402


def ids(model, text):
    out = subprocess.run([sys.argv[1], "tokenize", "-q", "-m", str(model), "--json"], input=text, capture_output=True,
                         text=True, check=True).stdout
    return json.loads(out)


@torch.no_grad()
def main():
    result = {}
    for name, path in MODELS.items():
        model, lines = reference(path), []
        for question, choices in ROWS:
            for c in choices:
                begin, whole = ids(path, question), ids(path, question + " " + c)
                logprobs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
                total = sum(float(logprobs[i - 1, whole[i]]) for i in range(len(begin), len(whole)))
                lines.append({"ids": whole, "n_begin": len(begin), "sum": round(total, 6)})
        result[name] = lines
    lines = [f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, v)) + "]" for name, v in result.items()]
    (HERE / "loglikelihoods.json").write_text("{\n" + ",\n".join(lines) + "}\n")


main()
