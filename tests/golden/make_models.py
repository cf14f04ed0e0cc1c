#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the small test models to ../data and expected logits and greedy text of ten models here.

usage: make_models.py STORIES260K.bin TOK512.bin SMOLLM2.gguf LLAMA-QUANTIZE [NAME...]

The expected values are transformers' in float32, from the tensors of the same GGUF file dequantised.
README.md beside this file describes the format.
"""
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Phi3Config,
                          Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
                          SmolLM3Config, SmolLM3ForCausalLM)

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data"
F32, F16, Q8_0 = (gguf.GGMLQuantizationType[t] for t in ("F32", "F16", "Q8_0"))
N_PROMPT, N_GREEDY, N_PROMPTS, N_TOP, N_SAMPLE, N_DISTINCT = 32, 64, 3, 5, 16, 8

TEXT = """The quick brown fox jumps over the lazy dog. A model that is small can still be useful when it
knows what it is for. int main(void) { return 0; } We hold 1, 2 and 3 of them; there are more to come."""


# ---- writing the models ----

def bpe_vocab():
    """256 bytes and 60 merges learned on TEXT, then four control tokens: 320."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=316, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    path = HERE / "merges.tmp"
    t.save(str(path))
    import json
    model = json.loads(path.read_text())["model"]
    path.unlink()
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    return tokens + ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"], [1] * 316 + [3] * 4, merges


LONG = {"short": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5], "long": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "original": 128}


def write_random(arch, tied, head_dim, seed, n_embd=64, n_heads=4, n_kv=2, n_ff=160, n_layers=2, name=None, gain=1.0):
    """A random model whose logits are spread enough for a greedy text without near ties."""
    rng = np.random.default_rng(seed)
    tokens, types, merges = bpe_vocab()
    name = name or f"random-{arch}"
    w = gguf.GGUFWriter(str(DATA / f"{name}.gguf"), arch)
    w.add_name(f"random {arch}")
    w.add_license("apache-2.0")
    w.add_context_length(256)
    w.add_embedding_length(n_embd)
    w.add_block_count(n_layers)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_heads)
    w.add_head_count_kv(n_kv)
    if head_dim != n_embd // n_heads:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    w.add_rope_freq_base(1000000.0)
    w.add_layer_norm_rms_eps(1e-6)
    if arch == "gemma3":
        w.add_sliding_window(12)
    if arch == "phi3":
        w.add_sliding_window(20)
        w.add_rope_dimension_count(2 * len(LONG["short"]))
        w.add_rope_scaling_orig_ctx_len(LONG["original"])
        w.add_rope_scaling_attn_factors(long_factor(256))
        w.add_tensor("rope_factors_short.weight", np.array(LONG["short"], np.float32))
        w.add_tensor("rope_factors_long.weight", np.array(LONG["long"], np.float32))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_eos_token_id(318)
    w.add_add_bos_token(False)
    w.add_chat_template("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
                        "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
                        "{{ '<|im_start|>assistant\n' }}{% endif %}")

    wide = 2.0 if tied else 1.0  # tied output prefers the token it has just seen: the layers must outweigh it

    def put(name, shape, kind, scale, mean=0.0):
        scale *= gain * wide if "ffn" in name and "norm" not in name else gain if "attn" in name else 1.0
        x = (rng.standard_normal(shape) * scale + mean).astype(np.float32)
        if kind == F32:
            w.add_tensor(name, x)
        else:
            w.add_tensor(name, quantize(x, kind), raw_dtype=kind)

    q_dim, kv_dim = n_heads * head_dim, n_kv * head_dim
    put("token_embd.weight", (len(tokens), n_embd), F16 if tied else Q8_0, 0.5)
    put("output_norm.weight", n_embd, F32, 0.1, 1.0)
    if not tied:
        put("output.weight", (len(tokens), n_embd), F16, 1.0)
    for i in range(n_layers):
        b = f"blk.{i}."
        put(b + "attn_norm.weight", n_embd, F32, 0.1, 1.0)
        put(b + "ffn_norm.weight", n_embd, F32, 0.1, 1.0)
        if arch == "phi3":
            put(b + "attn_qkv.weight", (q_dim + 2 * kv_dim, n_embd), F16, 0.15)
            put(b + "attn_output.weight", (n_embd, q_dim), F16, 0.3)
            put(b + "ffn_up.weight", (2 * n_ff, n_embd), F16, 0.15)
            put(b + "ffn_down.weight", (n_embd, n_ff), F16, 0.15)
            continue
        put(b + "attn_q.weight", (q_dim, n_embd), F16, 0.12)
        put(b + "attn_k.weight", (kv_dim, n_embd), F16, 0.12)
        put(b + "attn_v.weight", (kv_dim, n_embd), F32, 0.2)
        put(b + "attn_output.weight", (n_embd, q_dim), F16, 0.3)
        put(b + "ffn_gate.weight", (n_ff, n_embd), F16, 0.15)
        put(b + "ffn_up.weight", (n_ff, n_embd), F16, 0.15)
        put(b + "ffn_down.weight", (n_embd, n_ff), F16, 0.15)
        if arch == "gemma3":
            put(b + "post_attention_norm.weight", n_embd, F32, 0.5, 3.0)
            put(b + "post_ffw_norm.weight", n_embd, F32, 0.5, 3.0)
        if arch == "qwen2":
            put(b + "attn_q.bias", q_dim, F32, 0.5)
            put(b + "attn_k.bias", kv_dim, F32, 0.5)
            put(b + "attn_v.bias", kv_dim, F32, 0.5)
        if arch in ("qwen3", "gemma3"):
            put(b + "attn_q_norm.weight", head_dim, F32, 0.2, 1.0)
            put(b + "attn_k_norm.weight", head_dim, F32, 0.2, 1.0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def long_factor(n_ctx):
    """What longrope multiplies cos and sin by."""
    return float(np.sqrt(1 + np.log(n_ctx / LONG["original"]) / np.log(LONG["original"])))


def write_kquants(quantise):
    """A random llama, 256 wide, in all the types that come in 256 and some others, by llama-quantize."""
    write_random("llama", False, 64, 7, n_embd=256, n_ff=256, name="random-kquants-f16", gain=0.4)
    source = DATA / "random-kquants-f16.gguf"
    types = {"attn_q": "q4_k", "attn_k": "q5_k", "attn_v": "q6_k", "attn_output": "q5_0", "ffn_gate": "q4_k",
             "ffn_up": "iq4_nl", "ffn_down": "q5_1"}
    subprocess.run([quantise, "--allow-requantize", *[x for k, v in types.items() for x in ("--tensor-type", f"{k}={v}")],
                    "--token-embedding-type", "q6_k", "--output-tensor-type", "q8_0", str(source),
                    str(DATA / "random-kquants.gguf"), "Q4_K_M", "1"], check=True, stdout=subprocess.DEVNULL)
    source.unlink()


def write_stories(checkpoint, vocabulary):
    """llama2.c version 0: seven ints, then float32 tensors; q and k rows are in GGUF's order already."""
    raw = Path(checkpoint).read_bytes()
    dim, n_ff, n_layers, n_heads, n_kv, n_vocab, n_ctx = struct.unpack_from("<7i", raw)
    assert n_vocab > 0  # tied output
    values, at = np.frombuffer(raw, "<f4", offset=28), 0

    def take(*shape):
        nonlocal at
        n = int(np.prod(shape))
        at += n
        return values[at - n:at].reshape(shape)

    kv_dim = dim // n_heads * n_kv
    embd = take(n_vocab, dim)
    parts = {"attn_norm": take(n_layers, dim), "attn_q": take(n_layers, dim, dim),
             "attn_k": take(n_layers, kv_dim, dim), "attn_v": take(n_layers, kv_dim, dim),
             "attn_output": take(n_layers, dim, dim), "ffn_norm": take(n_layers, dim),
             "ffn_gate": take(n_layers, n_ff, dim), "ffn_down": take(n_layers, dim, n_ff),
             "ffn_up": take(n_layers, n_ff, dim)}
    norm = take(dim)
    raw, at_v = Path(vocabulary).read_bytes(), 4
    tokens, scores, types = [], [], []
    for i in range(n_vocab):
        score, n = struct.unpack_from("<fi", raw, at_v)
        token = raw[at_v + 8:at_v + 8 + n].decode()
        at_v += 8 + n
        tokens.append({0: "<unk>", 1: "<s>", 2: "</s>"}.get(i, token.replace(" ", "\u2581")))
        scores.append(score)
        types.append(2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1)
    w = gguf.GGUFWriter(str(DATA / "stories260K.gguf"), "llama")
    w.add_name("stories260K")
    w.add_license("mit")
    w.add_context_length(n_ctx)
    w.add_embedding_length(dim)
    w.add_block_count(n_layers)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_heads)
    w.add_head_count_kv(n_kv)
    w.add_rope_dimension_count(dim // n_heads)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(n_vocab)
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_tensor("token_embd.weight", embd)
    w.add_tensor("output_norm.weight", norm)
    for i in range(n_layers):
        for name, part in parts.items():
            w.add_tensor(f"blk.{i}.{name}.weight", np.ascontiguousarray(part[i]))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# ---- the reference ----

def unpermute(w, n_heads):
    """GGUF `llama` has the rows of each head of q and k as pairs (2i, 2i+1), transformers as (i, i + D/2)."""
    return w.reshape(n_heads, w.shape[0] // n_heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def reference(path, as_f16=False):
    """The transformers model of a GGUF file, float32. as_f16: quantised tensors rounded to float16 first."""
    r = gguf.GGUFReader(str(path))
    get = lambda key, default=None: r.fields[key].contents() if key in r.fields else default
    arch = get("general.architecture")
    t = {}
    for x in r.tensors:
        v = dequantize(x.data, x.tensor_type).astype(np.float32)
        if as_f16 and x.tensor_type not in (F32, F16):
            v = v.astype(np.float16).astype(np.float32)
        t[x.name] = torch.from_numpy(v.reshape([int(n) for n in x.shape][::-1]).copy())
    n_heads, n_kv = get(arch + ".attention.head_count"), get(arch + ".attention.head_count_kv")
    n_embd = get(arch + ".embedding_length")
    make_config, make_model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
                               "qwen3": (Qwen3Config, Qwen3ForCausalLM), "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
                               "smollm3": (SmolLM3Config, SmolLM3ForCausalLM), "phi3": (Phi3Config, Phi3ForCausalLM)}[arch]
    theta, head_dim = get(arch + ".rope.freq_base", 10000.0), get(arch + ".attention.key_length", n_embd // n_heads)
    window = get(arch + ".attention.sliding_window")
    n_layers = get(arch + ".block_count")
    more = {} if arch in ("qwen2", "phi3") else {"head_dim": head_dim}
    if arch == "gemma3":
        more |= {"sliding_window": window, "query_pre_attn_scalar": head_dim, "layer_types": [
            "full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(n_layers)],
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": theta},
                                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
    elif arch == "smollm3":
        more |= {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(n_layers)], "use_sliding_window": False, "pad_token_id": 0,
                 "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    elif arch == "phi3":
        dim = get("phi3.rope.dimension_count")
        more |= {"sliding_window": window, "pad_token_id": 0, "original_max_position_embeddings": LONG["original"],
                 "rope_parameters": {"rope_type": "longrope", "rope_theta": theta, "short_factor": LONG["short"],
                                     "long_factor": LONG["long"], "partial_rotary_factor": dim / head_dim,
                                     "original_max_position_embeddings": LONG["original"]}}
        t.pop("rope_factors_short.weight"), t.pop("rope_factors_long.weight")
    else:
        more |= {"rope_theta": theta}
    config = make_config(
        vocab_size=t["token_embd.weight"].shape[0], hidden_size=n_embd,
        intermediate_size=get(arch + ".feed_forward_length"), num_hidden_layers=n_layers,
        num_attention_heads=n_heads, num_key_value_heads=n_kv,
        rms_norm_eps=get(arch + ".attention.layer_norm_rms_epsilon"), max_position_embeddings=get(arch + ".context_length"),
        tie_word_embeddings="output.weight" not in t, attn_implementation="eager", **more)
    model = make_model(config).float().eval()
    state = {"model.embed_tokens.weight": t.pop("token_embd.weight"), "model.norm.weight": t.pop("output_norm.weight")}
    state["lm_head.weight"] = t.pop("output.weight", state["model.embed_tokens.weight"])
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
             "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if arch == "gemma3":
        names |= {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
                  "post_ffw_norm": "post_feedforward_layernorm"}
        state["model.norm.weight"] = state["model.norm.weight"] - 1
    if arch == "phi3":
        names |= {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
    for name, v in t.items():
        _, layer, part, kind = name.split(".")
        if arch == "gemma3" and "norm" in part:
            v = v - 1  # the files hold 1 + w
        if arch in ("llama", "smollm3") and part in ("attn_q", "attn_k"):
            v = unpermute(v, n_heads if part == "attn_q" else n_kv)
        state[f"model.layers.{layer}.{names[part]}.{kind}"] = v
    model.load_state_dict(state, strict=True)
    if arch == "phi3":
        assert abs(model.model.rotary_emb.attention_scaling - get("phi3.rope.scaling.attn_factor")) < 1e-6
    assert theta == (config.rope_parameters.get("full_attention") or config.rope_parameters)["rope_theta"]
    return model


@torch.no_grad()
def greedy(model, prompts):
    """For each prompt 64 ids, and the smallest lead of a chosen id over the next best."""
    run, cache, ids, leads = torch.tensor(prompts), None, [], []
    for _ in range(N_GREEDY):
        out = model(run, past_key_values=cache, use_cache=True)
        best, cache = out.logits[:, -1].topk(2), out.past_key_values
        leads.append(best.values[:, 0] - best.values[:, 1])
        run = best.indices[:, :1]
        ids.append(run)
    return torch.cat(ids, 1).tolist(), torch.stack(leads).amin(0).tolist()


@torch.no_grad()
def write_golden(name, model, prompts):
    n_vocab = model.config.vocab_size
    tried = []
    for i in range(0, len(prompts), 16):
        part = prompts[i:i + 16]
        tried += zip(part, *greedy(model, part))
    tried = sorted((x for x in tried if len(set(x[1])) >= N_DISTINCT), key=lambda x: -x[2])[:N_PROMPTS]
    sample = [k * n_vocab // N_SAMPLE for k in range(N_SAMPLE)]
    with open(HERE / f"logits-{name}.txt", "w", encoding="ascii", newline="\n") as out:
        for prompt, text, lead in tried:
            logits = model(torch.tensor([prompt])).logits[0]
            out.write("prompt " + " ".join(map(str, prompt)) + "\n")
            for row in logits:
                top = row.topk(N_TOP)
                ids = [int(i) for i in top.indices] + sample
                out.write("logits " + " ".join(f"{i} {float(row[i]):.6g}" for i in ids) + "\n")
            out.write("greedy " + " ".join(map(str, text)) + "\n")
            out.write(f"lead {lead:.4g}\n")
    print(name, "lead", [round(x[2], 4) for x in tried], "of", len(prompts), "prompts")


SENTENCES = [
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her friends, and one day",
    "The water cycle describes how water moves on, above and below the surface of the Earth. Rain falls, rivers run to the sea, and",
    "In the year 1815 the battle was fought near the village, and the general, who had slept badly, wrote to his wife that evening: My dear",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\nprint(fibonacci(10))\n",
    "<|im_start|>user\nWhat do plants need to grow, and why do they turn towards the light?<|im_end|>\n<|im_start|>assistant\nPlants need",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. However little",
    "The city lies on the river, which is crossed by three bridges; the oldest was built of stone in the twelfth century and the",
    "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen, seventeen,",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40",
    "The alphabet: A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W,",
    "January, February, March, April, May, June, July, August, September, October, November, December, January, February, March, April,",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday Tuesday "
    "Wednesday Thursday Friday",
    "<|im_start|>user\nCount from one to twenty in words, with commas between them, please.<|im_end|>\n<|im_start|>assistant\nOne, two, three,",
    "<|im_start|>user\nWhat is the capital of France? Answer in one short sentence.<|im_end|>\n<|im_start|>assistant\nThe capital of",
    "Two times one is two. Two times two is four. Two times three is six. Two times four is eight. Two times five is ten.",
    "for (int i = 0; i < n; i++) {\n    sum += a[i];\n}\nfor (int i = 0; i < n; i++) {\n    sum += b[i];\n}\n",
    "import os\nimport sys\nimport json\n\n\ndef main():\n    if len(sys.argv) != 2:\n        print('usage: ' + sys.argv[0]",
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was upon the face of",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of outrageous fortune,",
    "Caf\u00e9s, na\u00efve r\u00e9sum\u00e9s and 12.5 % more: the Stra\u00dfe was empty, \u041f\u0440\u0438\u0432\u0435\u0442, and the sky above the town was the colour of",
]


REPEATED = [  # the continuation copies, so each choice leads clearly
    "Row, row, row your boat, gently down the stream, merrily, merrily, merrily, life is but a dream. ",
    "The cat sat on the mat, the dog lay by the door, and the bird sang in the tree. ",
    "red, orange, yellow, green, blue, indigo, violet, black, white, grey, brown, pink, ",
    "if (a[i] < b[j]) { c[k++] = a[i++]; } else { c[k++] = b[j++]; }\n",
    "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune go around the Sun. ",
    "<p class=\"note\">Please read the manual before use.</p>\n",
    "Paris is in France, Rome is in Italy, Madrid is in Spain, Berlin is in Germany. ",
    "SELECT name, price FROM products WHERE price > 10 ORDER BY name;\n",
]


def text_prompts(encode, bos):
    rows = [bos + encode(s) for s in SENTENCES]
    for skip in (3, 5, 7, 9):
        rows += [bos + encode(s)[skip:] for s in SENTENCES]
    rows += [bos + encode(s * 4) for s in REPEATED]
    return [r[:N_PROMPT] for r in rows if len(r) >= N_PROMPT]


def stories_prompts(path):
    """Greedy merges by score, as llama2.c does it."""
    r = gguf.GGUFReader(str(path))
    tokens = [x.replace("\u2581", " ") for x in r.fields["tokenizer.ggml.tokens"].contents()]
    scores, index = r.fields["tokenizer.ggml.scores"].contents(), {}
    for i, x in enumerate(tokens):
        index.setdefault(x, i)

    def encode(s):
        ids = [index[c] for c in " " + s]
        while True:
            pairs = [(scores[index[tokens[a] + tokens[b]]], -k) for k, (a, b) in enumerate(zip(ids, ids[1:]))
                     if tokens[a] + tokens[b] in index]
            if not pairs:
                return ids
            k = -max(pairs)[1]
            ids[k:k + 2] = [index[tokens[ids[k]] + tokens[ids[k + 1]]]]
    plain = [s for s in SENTENCES if all(c in index for c in s)]
    starts = ["Tom and Ben were playing with a big red ball in the garden when they saw a cat on the tree",
              "The sun was shining and the little bird wanted to fly high up in the sky with his mom",
              "One day a boy found a small box under his bed and he was very happy because it was a gift",
              "Lily likes cake and she asked her mom if she could have some more but her mom said no"]
    return [([1] + encode(s))[:N_PROMPT] for s in plain + starts]


def random_prompts(n_vocab, seed):
    rng = np.random.default_rng(seed)
    return [[int(i) for i in rng.integers(0, n_vocab, N_PROMPT)] for _ in range(1000)]


def main():
    checkpoint, vocabulary, smollm, quantise, *only = sys.argv[1:]
    torch.set_num_threads(1)
    small = HERE.parent.parent / "models" / "crayon-15m-q8_0.gguf"

    def encoder(path):
        r = gguf.GGUFReader(str(path))
        get = lambda key: r.fields["tokenizer.ggml." + key].contents()
        tokens = get("tokens")
        t = Tokenizer(models.BPE({x: i for i, x in enumerate(tokens)}, [tuple(m.split(" ")) for m in get("merges")]))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if get("pre") == "smollm":
            t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), t.pre_tokenizer])
        t.add_special_tokens([x for x, k in zip(tokens, get("token_type")) if k == 3])
        return lambda s: t.encode(s).ids

    def do(name, make):
        if not only or name in only:
            make()

    DATA.mkdir(exist_ok=True)
    do("random-qwen2", lambda: (write_random("qwen2", True, 16, 2), write_golden(
        "random-qwen2", reference(DATA / "random-qwen2.gguf"), random_prompts(320, 1))))
    do("random-qwen3", lambda: (write_random("qwen3", False, 32, 3), write_golden(
        "random-qwen3", reference(DATA / "random-qwen3.gguf"), random_prompts(320, 1))))
    narrow = {"n_embd": 32, "n_heads": 2, "n_kv": 1, "n_ff": 96}
    for arch, tied, dim, seed, shape in (("gemma3", True, 32, 4, narrow | {"n_layers": 6}),
                                         ("smollm3", False, 16, 5, narrow | {"n_layers": 4}), ("phi3", False, 16, 6, {})):
        name = f"random-{arch}"
        do(name, lambda: (write_random(arch, tied, dim, seed, **shape), write_golden(
            name, reference(DATA / f"{name}.gguf"), random_prompts(320, 1))))
    do("random-kquants", lambda: (write_kquants(quantise), write_golden(
        "random-kquants", reference(DATA / "random-kquants.gguf"), random_prompts(320, 1))))
    do("stories260K", lambda: (write_stories(checkpoint, vocabulary), write_golden(
        "stories260K", reference(DATA / "stories260K.gguf"), stories_prompts(DATA / "stories260K.gguf"))))
    do("crayon-15m-q8_0", lambda: write_golden("crayon-15m-q8_0", reference(small), text_prompts(encoder(small), [0])))
    do("crayon-15m-f16", lambda: write_golden("crayon-15m-f16", reference(small, True), text_prompts(encoder(small), [0])))
    do("smollm2-135m-q4_1", lambda: write_golden("smollm2-135m-q4_1", reference(smollm), text_prompts(encoder(smollm), [])))


if __name__ == "__main__":
    main()
