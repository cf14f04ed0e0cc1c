# SPDX-License-Identifier: Apache-2.0
"""Golden LoRA adapters: a tiny random llama model as GGUF, four PEFT directories and their logits.

usage: make_lora.py OUTPUT_FOLDER        (needs torch, transformers, peft, gguf, safetensors)

Weights are random (seed 1), rounded to float16. Logits are computed in float64 by PEFT's own
forward pass, so that what differs in crayon is crayon's rounding.
"""
import json
import os
import shutil
import sys

import gguf
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, DIM, FF, LAYERS, HEADS, KV = 264, 64, 96, 2, 4, 2
TOKENS = [1, 72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 263]
LINEARS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
           "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
           "mlp.down_proj": "ffn_down"}

VARIANTS = {
    "plain": (torch.float32, dict(r=4, lora_alpha=8, target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])),
    "patterns": (torch.float32, dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"],
        rank_pattern={"q_proj": 8, "layers.1.mlp.down_proj": 2},
        alpha_pattern={"k_proj": 3, "model.layers.0.self_attn.o_proj": 5,
                       "^model.layers.1.mlp.up_proj": 7})),
    "rslora": (torch.bfloat16, dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=r".*\.(q_proj|v_proj|gate_proj)",
        rank_pattern={r"layers\.1\..*": 3})),
    "layers": (torch.float16, dict(r=3, lora_alpha=12, layers_to_transform=[1],
                                   target_modules=["v_proj", "k_proj", "down_proj"])),
}


def byte_tokens():
    """The 256 printable stand-ins of byte-level BPE."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    extra, table = 0, {}
    for b in range(256):
        if b in keep:
            table[b] = chr(b)
        else:
            table[b] = chr(256 + extra)
            extra += 1
    return [table[b] for b in range(256)]


def make_base():
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=DIM, intermediate_size=FF,
                         num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         num_key_value_heads=KV, max_position_embeddings=128, rms_norm_eps=1e-5,
                         tie_word_embeddings=True, initializer_range=0.1)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.2 * torch.randn_like(p))
            p.copy_(p.half().float())
    return model.double()


def permute(w, heads):
    """Hugging Face row order to GGUF `llama`: inside a head (half, i) becomes (i, half)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(model, path):
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny random llama for LoRA tests")
    w.add_context_length(128)
    w.add_embedding_length(DIM)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV)
    w.add_rope_dimension_count(DIM // HEADS)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCAB)
    w.add_file_type(1)
    special = ["<|end|>"] + [f"<|spare{i}|>" for i in range(5)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(byte_tokens() + ["he", "ll"] + special)
    w.add_token_types([1] * 258 + [3] * 6)
    w.add_token_merges(["h e", "l l"])
    w.add_eos_token_id(258)
    state = model.state_dict()

    def put(name, t):
        a = t.float().numpy()
        w.add_tensor(name, a if a.ndim == 1 else a.astype(np.float16))

    put("token_embd.weight", state["model.embed_tokens.weight"])
    put("output_norm.weight", state["model.norm.weight"])
    for n in range(LAYERS):
        hf = f"model.layers.{n}."
        put(f"blk.{n}.attn_norm.weight", state[hf + "input_layernorm.weight"])
        put(f"blk.{n}.ffn_norm.weight", state[hf + "post_attention_layernorm.weight"])
        for theirs, ours in LINEARS.items():
            t = state[hf + theirs + ".weight"]
            if ours in ("attn_q", "attn_k"):
                t = permute(t, HEADS if ours == "attn_q" else KV)
            put(f"blk.{n}.{ours}.weight", t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].float().numpy()


def save_logits(out, name, x):
    x.astype("<f4").tofile(os.path.join(out, f"{name}.logits.f32"))
    print(f"{name}: {x.shape}, max |logit| {abs(x).max():.3f}")


def tidy(folder, dtype):
    """Keeps the two files that matter, the tensors in dtype, no paths in the config."""
    path = os.path.join(folder, "adapter_model.safetensors")
    save_file({k: v.to(dtype).contiguous() for k, v in load_file(path).items()}, path,
              metadata={"format": "pt"})
    readme = os.path.join(folder, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config["base_model_name_or_path"] = "tiny-random-llama"
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    write_gguf(make_base(), os.path.join(out, "base.gguf"))
    save_logits(out, "base", logits(make_base()))
    for seed, (name, (dtype, settings)) in enumerate(VARIANTS.items()):
        torch.manual_seed(100 + seed)
        folder = os.path.join(out, name)
        shutil.rmtree(folder, ignore_errors=True)
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
        peft = get_peft_model(make_base(), config)
        with torch.no_grad():
            for key, p in peft.named_parameters():
                if "lora_" in key:
                    p.copy_((0.1 * torch.randn_like(p)).to(dtype).double())
        peft.peft_config["default"].inference_mode = True
        peft.save_pretrained(folder)
        tidy(folder, dtype)
        again = PeftModel.from_pretrained(make_base(), folder).double().eval()
        save_logits(out, name, logits(again))
    # the exact sum of two adapters: 0.5 * plain - 2 * patterns
    model = make_base()
    for name, scale in (("plain", 0.5), ("patterns", -2.0)):
        peft = PeftModel.from_pretrained(make_base(), os.path.join(out, name)).double()
        for key, module in peft.base_model.model.named_modules():
            if hasattr(module, "get_delta_weight"):
                with torch.no_grad():
                    w = model.get_submodule(key).weight
                    w += scale * module.get_delta_weight("default")
    save_logits(out, "sum", logits(model))


if __name__ == "__main__":
    main()
