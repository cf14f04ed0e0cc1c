# SPDX-License-Identifier: Apache-2.0
"""A crayon server for the clients: $CRAYON (default build/crayon) on a free port of this machine."""
import contextlib
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(os.environ.get("CRAYON_ROOT", pathlib.Path(__file__).resolve().parents[2]))
PROGRAM = os.environ.get("CRAYON", str(ROOT / "build/crayon"))
MODEL = str(ROOT / "models/crayon-15m-q8_0.gguf")

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no look-up on the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("OPENAI_API_KEY", "none")


@contextlib.contextmanager
def serving(model):
    server = subprocess.Popen([PROGRAM, "serve", "-q", "-m", model, "--alias", "m", "--port", "0"],
                              stdout=subprocess.PIPE, text=True)
    address = server.stdout.readline().strip()
    assert address.startswith("http://"), "the server did not start"
    try:
        yield address
    finally:
        server.terminate()
        assert server.wait(60) == 0


@pytest.fixture(scope="session")
def url():
    with serving(MODEL) as address:
        yield address


@pytest.fixture(scope="session")
def host(url):
    return url.removesuffix("/v1")
