#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tokens-texts.xz, 10,000 texts, and tokens.txt, hashes of their token ids by other implementations.

usage: make_tokens.py SMOLLM2-tokenizer.json CRAYON-15M-tokenizer.json GPT2-encoder.json GPT2-vocab.bpe LLAMA2-tokenizer.model
                      [FAMILY N]      prints text N and its ids instead

README.md beside this file describes both files.
"""
import hashlib
import lzma
import random
import sys
from pathlib import Path

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

HERE = Path(__file__).resolve().parent
N_TEXTS, BLOCK = 10000, 100

# Public-domain text (Austen, Carroll, Pushkin, Goethe, Verne, Cervantes, Laozi, the Universal
# Declaration of Human Rights) and snippets written for this file.
PROSE = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so well fixed.
"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at last?"
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice she'd peeped.
"What is the use of a book," thought Alice, "without pictures or conversations?" I'll say it's over; we've seen they're DON'T and I'M.
In 1815, 3.14159 or 2,718,281.83 people (about 12 %) paid $1,000,000 -- that's 1/2 of 5 & 6... isn't it?! e.g. U.S.A., 10:30 a.m., #42
All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.
The model's 135M weights weren't quantised; you'd need ~270MB of RAM. See https://example.org/a_b?c=d&e=%20f#g or mail me@example.org."""
CODE = """int main(void) { return 0; }
\tfor (size_t i = 0; i < n; i++)\n\t\tsum += a[i] * b[i];
def f(x: int) -> str:\n    return f"{x!r:>10}"  # comment
if (p == NULL || *p != '\\0') { goto fail; }
SELECT name, COUNT(*) FROM t WHERE id >= 10 GROUP BY 1 ORDER BY 2 DESC;
<div class="a b" id='x'>&nbsp;&lt;tag&gt;</div>
let v: Vec<u8> = (0..=255).map(|b| b ^ 0x5A).collect();\r\n
{"key": [1, 2.5e-3, null, true], "s": "\\u00e9\\n"}
#include <stdio.h>\n#define MAX(a,b) ((a)>(b)?(a):(b))\n\n\n
export PATH="$HOME/bin:$PATH" && ls -la | grep -E '^d' > /dev/null 2>&1
    public static void main(String[] args) throws Exception {\n        System.out.println("x");\n    }
a = b**2 // 3 % 4; c <<= 5; d = ~e & 0xFF; f != g; h <=> i; j ?: k"""
OTHER = """\u042f \u043f\u043e\u043c\u043d\u044e \u0447\u0443\u0434\u043d\u043e\u0435 \u043c\u0433\u043d\u043e\u0432\u0435\u043d\u044c\u0435: \u041f\u0435\u0440\u0435\u0434\u043e \u043c\u043d\u043e\u0439 \u044f\u0432\u0438\u043b\u0430\u0441\u044c \u0442\u044b, \u041a\u0430\u043a \u043c\u0438\u043c\u043e\u043b\u0435\u0442\u043d\u043e\u0435 \u0432\u0438\u0434\u0435\u043d\u044c\u0435
\u0423\u0441\u0456 \u043b\u044e\u0434\u0438 \u043d\u0430\u0440\u043e\u0434\u0436\u0443\u044e\u0442\u044c\u0441\u044f \u0432\u0456\u043b\u044c\u043d\u0438\u043c\u0438, \u0457\u0445 \u0491\u0430\u043d\u043e\u043a
\u9053\u53ef\u9053\uff0c\u975e\u5e38\u9053\u3002\u540d\u53ef\u540d\uff0c\u975e\u5e38\u540d\u3002\u7121\u540d\u5929\u5730\u4e4b\u59cb\uff1b\u6709\u540d\u842c\u7269\u4e4b\u6bcd\u3002
\u4eba\u4eba\u751f\u800c\u81ea\u7531\uff0c\u5728\u5c0a\u4e25\u548c\u6743\u5229\u4e0a\u4e00\u5f8b\u5e73\u7b49\u3002\u4ed6\u4eec\u8d4b\u6709\u7406\u6027\u548c\u826f\u5fc3
\u3059\u3079\u3066\u306e\u4eba\u9593\u306f\u3001\u751f\u307e\u308c\u306a\u304c\u3089\u306b\u3057\u3066\u81ea\u7531\u3067\u3042\u308a\u3001\u30c6\u30b9\u30c8\u30fb\u30c7\u30fc\u30bf\u3067\u3059\u3002
\ubaa8\ub4e0 \uc778\uac04\uc740 \ud0dc\uc5b4\ub0a0 \ub54c\ubd80\ud130 \uc790\uc720\ub85c\uc6b0\uba70 \uadf8 \uc874\uc5c4\uacfc \uad8c\ub9ac\uc5d0 \uc788\uc5b4
\u064a\u0648\u0644\u062f \u062c\u0645\u064a\u0639 \u0627\u0644\u0646\u0627\u0633 \u0623\u062d\u0631\u0627\u0631\u064b\u0627 \u0645\u062a\u0633\u0627\u0648\u064a\u0646 \u0661\u0662\u0663
\u05db\u05dc \u05d1\u05e0\u05d9 \u05d4\u05d0\u05d3\u05dd \u05e0\u05d5\u05dc\u05d3\u05d5 \u05d1\u05e0\u05d9 \u05d7\u05d5\u05e8\u05d9\u05df
\u0938\u092d\u0940 \u092e\u0928\u0941\u0937\u094d\u092f\u094b\u0902 \u0915\u094b \u0917\u094c\u0930\u0935 \u0914\u0930 \u0905\u0927\u093f\u0915\u093e\u0930\u094b\u0902 \u0967\u0968
\u0e21\u0e19\u0e38\u0e29\u0e22\u0e4c\u0e17\u0e31\u0e49\u0e07\u0e2b\u0e25\u0e32\u0e22\u0e40\u0e01\u0e34\u0e14\u0e21\u0e32\u0e21\u0e35\u0e2d\u0e34\u0e2a\u0e23\u0e30
\u038c\u03bb\u03bf\u03b9 \u03bf\u03b9 \u03ac\u03bd\u03b8\u03c1\u03c9\u03c0\u03bf\u03b9 \u03b3\u03b5\u03bd\u03bd\u03b9\u03bf\u03cd\u03bd\u03c4\u03b1\u03b9 \u03b5\u03bb\u03b5\u03cd\u03b8\u03b5\u03c1\u03bf\u03b9
Wer reitet so sp\u00e4t durch Nacht und Wind? Es ist der Vater mit seinem Kind; Stra\u00dfe, GR\u00d6SSE, \u1e9e
Longtemps, je me suis couch\u00e9 de bonne heure \u2014 \u00ab d\u00e9j\u00e0 \u00bb, l\u2019\u0153uvre, \u00e7a co\u00fbte 5 \u20ac
En un lugar de la Mancha, de cuyo nombre no quiero acordarme; \u00bfqu\u00e9? \u00a1ni\u00f1o!
Ng\u01b0\u1eddi ta sinh ra t\u1ef1 do; \u0130stanbul'da \u0131\u015f\u0131k; \u017b\u00f3\u0142\u0107, P\u0159\u00edli\u0161"""
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n ", "\u00a0", "\u2003", "\u3000", "\u2009", "\u202f",
          "\u200b", "\u180e", "\ufeff", "\u0085", "\u2028", "\u2029", "\x0b", "\x0c", "\r", "\x1c", "\x1f", " " * 9,
          "\t\t\t", "\n \n\t\n", "\u1680", "\u205f"]
EMOJI = ["\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea",
         "1\ufe0f\u20e3", "\U0001f680", "\u2603", "\u00a9", "\u2192", "\U0001f9d1\u200d\U0001f4bb", "\u2605\u2606", "\U0001f525"]
NUMBERS = ["0", "42", "1234567", "\u00bd", "\u2167", "\u2460", "\u0664\u0665", "\u096a", "1e-9", "0xFF", "3rd", "\u00b2", "\u4e09", "1\u0301"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end", "<s>", "</s>", "<unk>", "<0x0A>", "[INST]", "<|pad|>",
           "<<|im_end|>>", "<|im_start|>user", "<repo_name>", "\u2581", "\u2581\u2581a", "<|", "|>"]
SHORT = ["'s", "'S", "'\u017f", "'ll", "'LL", "'t", "'re", "'Ve", "'x", "''", "'", "\"", "_", "-", "--", "...", "a", "I", "z", "\u00aa", "\u01c5",
         "\u02b0", "\u0345", "\u0903", "\u20dd", "\u00ad", "$", "+", "<=>", "^", "~", "|", "\u20ac", "\u00d7", "\u2211", "\u3001", "\uff01",
         "\ufffd", "\U00020000", "\U000e0041", "\U0010fffd", "\ue000"]


def marks(rng):
    base = rng.choice(["a", "e", "o", "", "\u0438", "n", " "])
    return base + "".join(chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randrange(1, 9)))


def letters(rng):
    """Words that no one wrote: syllables, runs, letters of one script."""
    kind = rng.randrange(4)
    if kind == 0:
        return "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randrange(1, 6)))
    if kind == 1:
        return rng.choice("aZ.=-#*0\u00e9\u4e00 ") * rng.randrange(2, 40)
    start, end = rng.choice([(0x410, 0x450), (0x4e00, 0x9fa5), (0x3b1, 0x3c9), (0x5d0, 0x5ea), (0xac00, 0xd7a3), (0x905, 0x939),
                             (0x30a1, 0x30fa), (0x10d0, 0x10f0), (0x561, 0x586), (0x1d400, 0x1d454), (0xc0, 0x17f)])
    return "".join(chr(rng.randrange(start, end)) for _ in range(rng.randrange(1, 8)))


def words(rng, source):
    lines = source.split("\n")
    line = rng.choice(lines)
    if rng.random() < 0.3:
        return line
    parts = line.split(" ")
    start = rng.randrange(len(parts))
    return " ".join(parts[start:start + rng.randrange(1, 12)])


def text(rng, n):
    """Text n as bytes: nine in ten are valid UTF-8."""
    makers = [lambda: words(rng, PROSE), lambda: words(rng, CODE), lambda: words(rng, OTHER), lambda: rng.choice(EMOJI) * rng.choice([1, 1, 3]),
              lambda: marks(rng), lambda: rng.choice(SPACES), lambda: rng.choice(NUMBERS), lambda: rng.choice(SHORT), lambda: letters(rng),
              lambda: rng.choice(SPECIAL)]
    weights = [6, 6, 5, 2, 2, 5, 3, 5, 4, 1]
    glue = rng.choice(["", " ", " ", None])
    out = ""
    for _ in range(rng.randrange(1, 9)):
        out += rng.choices(makers, weights)[0]() + (rng.choice(SPACES) if glue is None else glue)
    data = bytearray(out.replace("\0", "").encode())
    if n % 10 == 9:
        for _ in range(rng.randrange(1, 6)):
            at, kind = rng.randrange(len(data) + 1), rng.randrange(3)
            if kind == 0:
                data[at:at] = bytes(rng.choice([0x80, 0xBF, 0xC0, 0xC3, 0xE0, 0xE2, 0xED, 0xA0, 0xF0, 0xF4, 0x90, 0xF5, 0xFE, 0xFF])
                                    for _ in range(rng.randrange(1, 4)))
            elif kind == 1:
                del data[at:at + 1]
            else:
                data[at:at + 1] = bytes([rng.randrange(128, 256)])
    return bytes(data)


# ---- the other implementations ----

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]


def byte_level(bpe, patterns):
    t = Tokenizer(bpe)
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns] +
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return lambda s: t.encode(s).ids


def from_json(path, special):
    t = Tokenizer.from_file(path)
    t.encode_special_tokens = not special
    return lambda s: t.encode(s, add_special_tokens=False).ids


def stories():
    """A sentencepiece model with the pieces and scores of stories260K.gguf."""
    r = gguf.GGUFReader(str(HERE.parent / "data" / "stories260K.gguf"))
    get = lambda key: r.fields["tokenizer.ggml." + key].contents()
    m = sentencepiece_model_pb2.ModelProto()
    m.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    m.trainer_spec.byte_fallback = True
    m.trainer_spec.vocab_size = len(get("tokens"))
    m.normalizer_spec.name = "identity"
    m.normalizer_spec.add_dummy_prefix = True
    m.normalizer_spec.remove_extra_whitespaces = False
    m.normalizer_spec.escape_whitespaces = True
    for token, score, kind in zip(get("tokens"), get("scores"), get("token_type")):
        p = m.pieces.add()
        p.piece, p.score, p.type = token, score, kind
    return sentencepiece.SentencePieceProcessor(model_proto=m.SerializeToString()).encode


def families(smollm, small, encoder, merges, llama2):
    bpe = lambda **more: models.BPE.from_file(encoder, merges, **more)
    return {
        "gpt-2": byte_level(bpe(), [GPT2]),
        "smollm": from_json(smollm, False),
        "smollm+special": from_json(smollm, True),
        "crayon-15m": from_json(small, False),
        "crayon-15m+special": from_json(small, True),
        "llama-bpe": byte_level(bpe(ignore_merges=True), [LLAMA3]),
        "qwen2": byte_level(bpe(), [QWEN2]),
        "default": byte_level(bpe(), DEFAULT),
        "stories260K": stories(),
        "llama2": sentencepiece.SentencePieceProcessor(model_file=llama2).encode,
    }


def main():
    rng = random.Random(20240611)
    texts = [text(rng, n) for n in range(N_TEXTS)]
    decoded = [t.decode("utf-8", errors="replace") for t in texts]
    encoders = families(*sys.argv[1:6])
    if len(sys.argv) > 6:
        n = int(sys.argv[7])
        print(texts[n], encoders[sys.argv[6]](decoded[n]), sep="\n")
        return
    data = b"".join(t + b"\0" for t in texts)
    (HERE / "tokens-texts.xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    with open(HERE / "tokens.txt", "w", encoding="ascii", newline="\n") as out:
        for name, encode in encoders.items():
            total = 0
            for begin in range(0, N_TEXTS, BLOCK):
                h = hashlib.sha256()
                for s in decoded[begin:begin + BLOCK]:
                    ids = list(encode(s))
                    total += len(ids)
                    h.update((" ".join(map(str, ids)) + "\n").encode())
                out.write(f"{name} {begin} {h.hexdigest()[:16]}\n")
            print(name, total, "ids")
    print(len(data), "bytes of text")


main()
