#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes worked.txt: token ids of questions behind worked examples, by the tokenizers library in the format of
bench/evidence (`lab.py`, `shots`), which the evidence was measured with, and one BOS in front where the model asks for it.

usage: make_worked.py CRAYON-15M.gguf

README.md beside this file describes the format.
"""
import sys
from pathlib import Path

import gguf

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "bench" / "evidence"))
from pack import Packer, tokenizer_of  # noqa: E402

CASES = [
    ([("", "2 + 2?", "4")], ("", "3 + 5?")),
    ([("The cat sat on the mat.", "Where did the cat sit?", "on the mat"), ("", "Which colour?", "It is blue.")],
     ("Ann has two dogs.", "How many dogs has Ann?")),
    ([("", "  blanks around  ", "x y"), ("", "two\nlines", "caf\u00e9 \u2014 42"), ("a\nb", "q", "I'm <|im_end|>")],
     ("", "<s> what's \u4e2d\u6587?")),
    ([], ("", "Alone?")),
]


def main(path):
    p, fields = Packer(tokenizer_of(path)), gguf.GGUFReader(path).fields
    get = lambda k: fields["tokenizer.ggml." + k].contents() if "tokenizer.ggml." + k in fields else None
    bos = [int(get("bos_token_id"))] if get("add_bos_token") else []

    def prompt(context, question):
        p.ids, p.rows, p.options = [], [], []
        p.row({"context": context, "question": question, "answer": "x"}, 0, 2)
        return p.ids[p.rows[0][2]:p.rows[0][2] + p.rows[0][3]]

    plain = lambda s: s.replace("\\", "\\\\").replace("\n", "\\n")
    with open(HERE / "worked.txt", "w", encoding="utf-8") as f:
        for examples, (context, question) in CASES:
            ids = list(bos)
            for c, q, a in examples:
                ids += prompt(c, q) + p.encode(" " + a).ids + p.newline
                print("example", plain(c), plain(q), plain(a), sep="\t", file=f)
            print("question", plain(context), plain(question), sep="\t", file=f)
            print("ids", *ids + prompt(context, question), file=f)


main(*sys.argv[1:])
