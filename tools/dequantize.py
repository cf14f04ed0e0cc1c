#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Development only: writes a GGUF model again with every matrix as F16 or F32.

usage: dequantize.py MODEL.gguf OUTPUT.gguf [f16|f32]

The values are those of the quantised file (rounded to F16), so a reference that was measured with
dequantised weights can be compared with. Keys and tokenizer are copied. Needs gguf, numpy.
"""
import sys

import gguf
import numpy as np


def main(source, target, kind="f16"):
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    w = gguf.GGUFWriter(target, arch)
    for name, f in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        value, kinds = f.contents(), f.types
        w.add_key_value(name, value, kinds[0], sub_type=kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None)
    for t in reader.tensors:
        x = gguf.dequantize(np.asarray(t.data), t.tensor_type).reshape([int(n) for n in t.shape[::-1]])
        w.add_tensor(t.name, x.astype(np.float16 if kind == "f16" and x.ndim > 1 else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main(*sys.argv[1:])
