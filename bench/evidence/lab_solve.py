# SPDX-License-Identifier: Apache-2.0
"""Ways from the user's examples to weights or adapters, for all tasks at once; for lab.py.

Everything is batched over tasks: weights are [tasks, n], losses come from one pass over the examples
of all tasks. The formulas are those of docs/method.md and src/adapt/.
"""
import math

import torch
import torch.nn.functional as F

from lab_model import LINEARS


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def mean_by(x, who, n):
    """Mean of the rows of x that belong to each of n owners."""
    s = torch.zeros(n, *x.shape[1:], device=x.device, dtype=x.dtype).index_add_(0, who, x)
    c = torch.zeros(n, device=x.device).index_add_(0, who, torch.ones(len(who), device=x.device))
    return s / c.clamp(min=1).view(-1, *[1] * (x.dim() - 1))


def kmeans(x, k, seed, restarts=10):
    """Spherical k-means++, best of the restarts. x [n, d] unit rows -> centroids [k, d]."""
    g = torch.Generator().manual_seed(seed)
    best = (-1.0, None)
    for _ in range(restarts):
        c = x[torch.randint(len(x), (1,), generator=g).to(x.device)]
        for _ in range(k - 1):
            far = (2 - 2 * (x @ c.T).max(1).values).clamp(min=0)
            at = torch.multinomial(far.cpu().double() + 1e-12, 1, generator=g).to(x.device)
            c = torch.cat([c, x[at]])
        for _ in range(50):
            s, label = (x @ c.T).max(1)
            new = unit(torch.zeros_like(c).index_add_(0, label, x))
            empty = torch.bincount(label, minlength=k) == 0
            new[empty] = x[s.topk(int(empty.sum()), largest=False).indices] if empty.any() else new[empty]
            if torch.allclose(new, c, atol=1e-6):
                break
            c = new
        total = float((x @ c.T).max(1).values.sum())
        if total > best[0]:
            best = (total, c)
    return best[1]


def fit_tau(s, want=2.5):
    lo, hi = math.log(1e-4), math.log(1e3)
    for _ in range(50):
        mid = (lo + hi) / 2
        p = (s / math.exp(mid)).softmax(1)
        n = float((-(p * p.clamp(min=1e-30).log()).sum(1)).exp().mean())
        lo, hi = (mid, hi) if n < want else (lo, mid)
    return math.exp((lo + hi) / 2)


def simplex(q, c, lam=0.01, rounds=2000, lr=0.5):
    """argmin over the simplex of |q - w C|^2 + lam sum w ln w, by mirror descent, batched over q."""
    w = torch.full((len(q), len(c)), 1 / len(c), device=q.device)
    for _ in range(rounds):
        grad = 2 * (w @ c - q) @ c.T + lam * (w.clamp(min=1e-30).log() + 1)
        w = (w.clamp(min=1e-30).log() - lr * grad).softmax(1)
    return w


class Losses:
    """Loss of weights on the user's examples. rows: RowSet of examples; who: task number per row."""

    def __init__(self, rows, who, n_tasks, form, ad, scale):
        self.rows, self.who, self.n, self.form, self.ad, self.scale = rows, who, n_tasks, form, ad, scale
        self.half = torch.zeros(len(rows), dtype=torch.long, device=who.device)
        seen = {}
        for i, t in enumerate(who.tolist()):
            self.half[i] = seen.get(t, 0) & 1
            seen[t] = seen.get(t, 0) + 1

    def __call__(self, w):
        """w [tasks, n] -> (mean [tasks], mean of each half [tasks, 2])."""
        dev = self.who.device
        loss = torch.as_tensor(self.rows.score(self.form, self.ad, None if w is None else w[self.who], self.scale)[1], device=dev)
        return mean_by(loss, self.who, self.n), torch.stack(
            [mean_by(loss[self.half == h], self.who[self.half == h], self.n) for h in (0, 1)], 1)

    def gradient(self, w, nll=False):
        """(mean loss [tasks], its gradient for w [tasks, n])."""
        w = w.detach().clone().requires_grad_()
        count = torch.bincount(self.who, minlength=self.n).clamp(min=1).float()
        total = torch.zeros(self.n, device=w.device)
        for p in self.rows.parts:
            step = max(1, p.per_call() // 8)
            for a in range(0, p.lines.n, step):
                b = min(a + step, p.lines.n)
                e, rows = p.entries(a, b), torch.nonzero((p.line_of >= a) & (p.line_of < b))[:, 0]
                if e.stop == e.start:
                    continue
                h = p.chunk(a, b, self.form, self.ad, w[self.who[p.mine_dev]], self.scale)
                loss = p.losses(p.option_sums(p.logprobs(p.at(h, a, e), e)[0], e), rows)[int(nll)]
                t = self.who[p.mine_dev[rows]]
                total.index_add_(0, t, (loss / count[t]).detach())
                (loss / count[t]).sum().backward()
        return total, w.grad.detach()


def pick(losses, starts):
    """Per task the start with the least loss. starts: list of [tasks, n]."""
    all_ = torch.stack([losses(w)[0] for w in starts])
    at = all_.argmin(0)
    return torch.stack(starts)[at, torch.arange(len(at), device=at.device)], at


def refine(losses, w, sigma, evals, seed, not_negative=False, marks=(), l1=0.0):
    """(1+1) evolution strategy per task, all tasks at once. Returns {evaluations: weights}."""
    g = torch.Generator().manual_seed(seed)
    pen = lambda x: l1 * x.abs().sum(1)
    best, half = losses(w)
    best = best + pen(w)
    step = torch.full((len(w), 1), float(sigma), device=w.device)
    out = {}
    for k in range(evals):
        trial = w + step * torch.randn(w.shape, generator=g).to(w.device)
        trial = trial.clamp(min=0) if not_negative else trial
        now, nh = losses(trial)
        now = now + pen(trial)
        ok = now < best if l1 else (now < best) & (nh <= half).all(1)
        w = torch.where(ok[:, None], trial, w)
        best, half = torch.where(ok, now, best), torch.where(ok[:, None], nh, half)
        step = torch.where(ok[:, None], step * 1.5, step * 0.9)
        if k + 1 in marks or k + 1 == evals:
            out[k + 1] = w
    return out


def tune_weights(losses, w0, lr, steps, pull, marks=()):
    """Adam on the weights by gradients, drawn back to the start: loss + pull * |(w - w0) / scale|^2 / n.
    lr is in units of scale, the spread of the start. Returns {steps: weights}."""
    scale = w0.std(1, keepdim=True).clamp(min=1e-3)
    x = torch.zeros_like(w0)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    out = {}
    for k in range(1, steps + 1):
        _, g = losses.gradient(w0 + x * scale)
        g = g * scale + 2 * pull * x / x.shape[1]
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        x = x - lr * (m / (1 - 0.9 ** k)) / ((v / (1 - 0.99 ** k)).sqrt() + 1e-8)
        if k in marks or k == steps:
            out[k] = w0 + x * scale
    return out


class TaskAdapters:
    """One adapter per task, tuned by AdamW on the user's own rows. per: {linear: (A [tasks, layers, r,
    d_in], B [tasks, layers, r, d_out])} in float32."""

    def __init__(self, base, per, scale):
        self.base, self.scale = base, scale
        self.p = {n: [x.detach().float().requires_grad_() for x in per[n]] for n in LINEARS}

    def ad(self, tasks=slice(None)):
        dt = self.base.dtype
        cast = {n: [x[tasks].to(dt).unbind(1) for x in self.p[n]] for n in LINEARS}
        return [[(cast[n][0][i], cast[n][1][i], None) for n in LINEARS] for i in range(self.base.layers)]

    def tune(self, rows, lr, steps, marks=(), on_mark=None):
        """rows: RowSet(right_only, by_task) whose groups are all these tasks in order, or a function from the step to one."""
        params = [x for n in LINEARS for x in self.p[n]]
        opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=params[0].is_cuda)
        for k in range(1, steps + 1):
            now = rows(k) if callable(rows) else rows
            part = now.parts[0]
            assert len(now.parts) == 1
            per = part.lines.per
            group = part.line_of // per
            count = torch.bincount(group, minlength=len(part.lines.groups)).float()
            tasks_a_call = max(1, part.per_call() // 8 // per)
            opt.zero_grad(set_to_none=False)
            for t in range(0, len(part.lines.groups), tasks_a_call):
                u = min(t + tasks_a_call, len(part.lines.groups))
                a, b = t * per, u * per
                e, mine = part.entries(a, b), torch.nonzero((group >= t) & (group < u))[:, 0]
                h = part.chunk(a, b, "task", self.ad(slice(t, u)), None, self.scale)
                _, nll, _ = part.losses(part.option_sums(part.logprobs(part.at(h, a, e), e)[0], e), mine)
                (nll / count[group[mine]]).sum().backward()
            # clip each task's own gradient at 1
            norm = sum((x.grad.flatten(1).pow(2).sum(1) for x in params)).sqrt()
            for x in params:
                x.grad.mul_((1 / norm.clamp(min=1)).view(-1, *[1] * (x.dim() - 1)))
            opt.step()
            if k in marks:
                on_mark(k)

    @torch.no_grad()
    def score(self, rows):
        """Scores a RowSet(by_task) whose groups are these tasks in order."""
        part = rows.parts[0]
        assert len(rows.parts) == 1
        per, out = part.lines.per, []
        tasks_a_call = max(1, part.per_call() // per)
        for t in range(0, len(part.lines.groups), tasks_a_call):
            u = min(t + tasks_a_call, len(part.lines.groups))
            e = part.entries(t * per, u * per)
            h = part.chunk(t * per, u * per, "task", self.ad(slice(t, u)), None, self.scale)
            out.append(part.logprobs(part.at(h, t * per, e), e))
        m = part.measure(torch.cat([x for x, _ in out]), torch.cat([y for _, y in out]))
        full = torch.zeros(3, len(rows), device=m.device)
        full[:, part.mine_dev] = m
        return full.cpu().numpy()
