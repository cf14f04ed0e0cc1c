# SPDX-License-Identifier: Apache-2.0
"""The frozen model, its adapters and the packing of rows into lines, in PyTorch; for lab.py.

Rows lie one behind another in lines of equal length; `row` and `opt` say who sees whom: token i sees
token j <= i of the same row when j is in the prompt (opt 0) or in the same option, and of the worked
examples in front of the line (opt -1). So training, all options of a question, and many questions of a
task with the same examples are the same call. q and k rows stay in GGUF order
(neighbouring pairs turn together).
"""
import math

import gguf
import numpy as np
import torch
import torch.nn.functional as F

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
TENSOR = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
          "down": "ffn_down"}


class Base:
    """A `llama` GGUF model with tied output, dequantised."""

    def __init__(self, path, device, dtype):
        reader = gguf.GGUFReader(path)
        field = {k: (v.contents() if hasattr(v, "contents") else v.parts[v.data[0]][0])
                 for k, v in reader.fields.items() if k.startswith("llama.")}
        self.layers = int(field["llama.block_count"])
        self.d = int(field["llama.embedding_length"])
        self.heads = int(field["llama.attention.head_count"])
        self.kv = int(field["llama.attention.head_count_kv"])
        self.eps = float(field["llama.attention.layer_norm_rms_epsilon"])
        self.theta = float(field.get("llama.rope.freq_base", 10000.0))
        self.hd = self.d // self.heads
        self.device, self.dtype = device, dtype
        t = {}
        for x in reader.tensors:
            w = gguf.dequantize(np.asarray(x.data), x.tensor_type).astype(np.float32)
            t[x.name] = torch.from_numpy(np.ascontiguousarray(w.reshape([int(n) for n in x.shape[::-1]])))
        put = lambda w: w.to(device=device, dtype=dtype).contiguous()
        self.emb = put(t["token_embd.weight"])
        self.head = put(t["output.weight"]) if "output.weight" in t else self.emb
        self.norm = put(t["output_norm.weight"])
        self.w = []
        for i in range(self.layers):
            p = "blk.%d." % i
            self.w.append((put(t[p + "attn_norm.weight"]),
                           put(torch.cat([t[p + TENSOR[n] + ".weight"] for n in "qkv"])), put(t[p + "attn_output.weight"]),
                           put(t[p + "ffn_norm.weight"]),
                           put(torch.cat([t[p + "ffn_gate.weight"], t[p + "ffn_up.weight"]])),
                           put(t[p + "ffn_down.weight"])))
        self.ff = t["blk.0.ffn_down.weight"].shape[1]
        self.out = {"q": self.d, "k": self.kv * self.hd, "v": self.kv * self.hd, "o": self.d, "gate": self.ff,
                    "up": self.ff, "down": self.d}
        self.inp = {n: self.ff if n == "down" else self.d for n in LINEARS}
        inv = self.theta ** (-torch.arange(0, self.hd, 2, dtype=torch.float64) / self.hd)
        angle = torch.arange(4096, dtype=torch.float64)[:, None] * inv
        self.cos, self.sin = (f(angle).to(device=device, dtype=torch.float32) for f in (torch.cos, torch.sin))
        self.compiled = None

    def qx(self, rows):
        """q_x of lists of token ids: W_q . mean RMSNorm(E[t]), GGUF row order, float32 [n, d]."""
        g, wq = self.w[0][0].float(), self.w[0][1][:self.d].float()
        out = []
        for ids in rows:
            x = self.emb[ids].float()
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * g
            out.append(x.mean(0))
        return torch.stack(out) @ wq.T


def rms(x, g, eps):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * g


def rope(x, cos, sin):
    """x [lines, heads, S, hd]; cos, sin [lines, 1, S, hd / 2]; pairs are neighbours."""
    y = x.float().unflatten(-1, (-1, 2))
    a, b = y[..., 0], y[..., 1]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def low_rank(form, x, a, b, w, v):
    """One linear's delta / scale. a [RA, d_in], b [RB, d_out]; w weights by token or None.
    forms: shared (one A, w chooses among the B's), separate (w by adapter), plain (no weights),
    arrow (w by the token's own projection on v [N, d_in], top 4), task (a [G, RA, d_in], lines
    grouped by task)."""
    if form == "task":
        g = x.reshape(a.shape[0], -1, x.shape[-1])
        return torch.bmm(torch.bmm(g, a.transpose(1, 2)), b).view(*x.shape[:-1], b.shape[-1])
    z = x @ a.T
    if form == "shared":
        z = (w[..., :, None] * z[..., None, :]).flatten(-2)
    elif form == "separate":
        z = (z.unflatten(-1, (w.shape[-1], -1)) * w[..., :, None]).flatten(-2)
    elif form == "arrow":
        top, at = (x @ v.T).abs().float().topk(min(4, v.shape[0]), -1)
        w = torch.zeros(*x.shape[:-1], v.shape[0], dtype=x.dtype, device=x.device)
        w.scatter_(-1, at, top.softmax(-1).to(x.dtype))
        z = (z.unflatten(-1, (w.shape[-1], -1)) * w[..., :, None]).flatten(-2)
    return z @ b


def layer(h, cos, sin, mask, wts, form, ad, w, scale, heads, kv, eps):
    """ad: None, or per linear (a, b, v or None)."""
    n1, wqkv, wo, n2, wgu, wd = wts
    lines, s, d = h.shape
    hd = d // heads
    x = rms(h, n1, eps)
    q, k, v = (x @ wqkv.T).split((d, kv * hd, kv * hd), -1)
    if ad is not None:
        q, k, v = (y + scale * low_rank(form, x, *ad[i][:2], w, ad[i][2]) for i, y in enumerate((q, k, v)))
    q = rope(q.view(lines, s, heads, hd).transpose(1, 2), cos, sin)
    k = rope(k.view(lines, s, kv, hd).transpose(1, 2), cos, sin)
    v = v.view(lines, s, kv, hd).transpose(1, 2)
    k, v = (y[:, :, None].expand(-1, -1, heads // kv, -1, -1).reshape(lines, heads, s, hd) for y in (k, v))
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(-1, heads, -1, -1))
    x = x.transpose(1, 2).reshape(lines, s, d)
    y = x @ wo.T
    if ad is not None:
        y = y + scale * low_rank(form, x, *ad[3][:2], w, ad[3][2])
    h = h + y
    x = rms(h, n2, eps)
    g, u = (x @ wgu.T).chunk(2, -1)
    if ad is not None:
        g = g + scale * low_rank(form, x, *ad[4][:2], w, ad[4][2])
        u = u + scale * low_rank(form, x, *ad[5][:2], w, ad[5][2])
    x = F.silu(g) * u
    y = x @ wd.T
    if ad is not None:
        y = y + scale * low_rank(form, x, *ad[6][:2], w, ad[6][2])
    return h + y


class Adapters:
    """Trained tensors of a pool: per linear A [layers, RA, d_in] and B [layers, RB, d_out] in float32.

    form "shared": RA = rank, RB = n * rank; "separate" and "plain": RA = RB = n * rank.
    delta = scale * sum_n w_n (A x) B_n."""

    def __init__(self, base, form, n, rank, scale=2.0, seed=0):
        self.base, self.form, self.n, self.rank, self.scale = base, form, n, rank, scale
        g = torch.Generator().manual_seed(seed)
        ra = rank if form == "shared" else n * rank
        self.a, self.b = {}, {}
        for name in LINEARS:
            a = torch.rand(base.layers, ra, base.inp[name], generator=g) * 2 - 1
            self.a[name] = (a / math.sqrt(base.inp[name])).to(base.device)
            self.b[name] = torch.zeros(base.layers, n * rank, base.out[name], device=base.device)

    def tensors(self):
        return [*self.a.values(), *self.b.values()]

    def cast(self):
        """Per layer a list of (a, b, None) in the model's type, for forward."""
        dt = self.base.dtype
        per = [(self.a[n].to(dt).unbind(0), self.b[n].to(dt).unbind(0)) for n in LINEARS]
        return [[(a[i], b[i], None) for a, b in per] for i in range(self.base.layers)]

    def arrow(self):
        """The same with each adapter's top right singular vector of B_n A_n in place of None."""
        out = self.cast()
        for k, name in enumerate(LINEARS):
            for i in range(self.base.layers):
                a = self.a[name][i].view(self.n, self.rank, -1).double()
                b = self.b[name][i].view(self.n, self.rank, -1).double()
                # right singular vectors of B A: those of R A with B = Q R
                r = torch.linalg.qr(b.transpose(1, 2))[1]
                v = torch.linalg.svd(r @ a, full_matrices=False)[2][:, 0]
                out[i][k] = (*out[i][k][:2], v.to(self.base.dtype))
        return out

    def blended(self, w):
        """Per-task adapters {name: (A [tasks, layers, r, d_in], B)} for weights w [tasks, n]."""
        out = {}
        for name in LINEARS:
            a, b = self.a[name], self.b[name].view(self.base.layers, self.n, self.rank, -1)
            if self.form == "shared":
                out[name] = (a[None].expand(len(w), -1, -1, -1).clone(), torch.einsum("tn,lnro->tlro", w, b))
            else:
                wb = (w[:, None, :, None, None] * b[None]).flatten(2, 3)
                out[name] = (a[None].expand(len(w), -1, -1, -1).clone(), wb)
        return out


def pack(size, s):
    """Rows of these sizes into lines of s tokens, each where it fits tightest: (lines, [(line, at)])."""
    place = [None] * len(size)
    n, free, some = 0, [[] for _ in range(s + 1)], 0  # free[r]: lines with room r; some: which r have one
    for i in sorted(range(len(size)), key=lambda i: -size[i]):
        fits = some >> size[i]
        if fits:
            r = size[i] + (fits & -fits).bit_length() - 1
            k = free[r].pop()
            if not free[r]:
                some &= ~(1 << r)
        else:
            k, r, n = n, s, n + 1
        place[i] = (k, s - r)
        free[r - size[i]].append(k)
        some |= 1 << (r - size[i])
    return n, place


class Lines:
    """Rows packed into lines of length s. rows: list of (prompt ids, [option ids]); with group, rows of
    a group stay together and every group gets the same number of lines (for per-task adapters). front:
    ids of the worked examples in front of each row, equal tuples shared by the rows of a line."""

    def __init__(self, rows, s, group=None, front=None):
        self.s = s
        size = [len(p) + sum(map(len, o)) for p, o in rows]
        place, of, front_of = [None] * len(rows), {}, {}
        for i in range(len(rows)):
            of.setdefault(None if group is None else group[i], {}).setdefault(front[i] if front else (), []).append(i)
        n = 0
        packed = {g: [(f, idx, *pack([size[i] for i in idx], s - len(f))) for f, idx in fronts.items()] for g, fronts in of.items()}
        self.groups = None if group is None else list(of)
        self.per = max(sum(p[2] for p in packed[g]) for g in packed) if rows else 0
        for g in packed:
            first = n
            for f, idx, lines, places in packed[g]:
                for i, (k, at) in zip(idx, places):
                    place[i] = (n + k, at + len(f))
                    front_of.setdefault(n + k, (f, i))
                n += lines
            if group is not None:
                n = first + self.per
        self.n, self.place = n, place
        self.ids = np.zeros((n, s), np.int64)
        self.pos = np.zeros((n, s), np.int64)
        self.row = np.full((n, s), -1, np.int64)
        self.opt = np.zeros((n, s), np.int64)
        for k, (f, i) in front_of.items():
            self.ids[k, :len(f)], self.pos[k, :len(f)] = f, np.arange(len(f))
            self.row[k, :len(f)], self.opt[k, :len(f)] = i, -1
        src, target, owner, self.n_options = [], [], [], 0
        self.row_of_option = []
        for i, (prompt, options) in enumerate(rows):
            k, at = place[i]
            p, before = len(prompt), len(front[i]) if front else 0
            self.ids[k, at:at + p] = prompt
            self.pos[k, at:at + p] = before + np.arange(p)
            self.row[k, at:at + size[i]] = i
            j = at + p
            for o, ids in enumerate(options):
                m = len(ids)
                self.ids[k, j:j + m] = ids
                self.pos[k, j:j + m] = before + p + np.arange(m)
                self.opt[k, j:j + m] = o + 1
                src += [k * s + at + p - 1] + list(range(k * s + j, k * s + j + m - 1))
                target += list(ids)
                owner += [self.n_options] * m
                self.row_of_option.append(i)
                self.n_options += 1
                j += m
        self.src, self.target, self.owner = (np.array(x, np.int64) for x in (src, target, owner))
        self.tokens = sum(size) + sum(len(f) for f, _ in front_of.values())


def mask_of(row, opt, dtype):
    s = row.shape[1]
    see = (row[:, :, None] == row[:, None, :]) & ((opt[:, None, :] == 0) | (opt[:, None, :] == opt[:, :, None]))
    see |= opt[:, None, :] == -1
    see &= torch.ones(s, s, dtype=torch.bool, device=row.device).tril()
    return torch.zeros(see.shape, dtype=dtype, device=row.device).masked_fill_(~see, -30000.0)[:, None]


def forward(base, ids, pos, row, opt, form=None, ad=None, w=None, scale=2.0, upto=None, fn=layer):
    """Hidden states [lines, S, d] after all layers and the last norm, or after `upto` layers.
    w: weights by token [lines, S, n] in the model's type."""
    h = F.embedding(ids, base.emb)
    cos, sin = base.cos[pos][:, None], base.sin[pos][:, None]
    mask = mask_of(row, opt, base.dtype)
    for i in range(base.layers if upto is None else upto):
        h = fn(h, cos, sin, mask, base.w[i], form, None if ad is None else ad[i], w, scale, base.heads, base.kv, base.eps)
    return rms(h, base.norm, base.eps) if upto is None else h
