# SPDX-License-Identifier: Apache-2.0
"""Packed task data (pack.py), training batches and scoring of rows, in PyTorch; for lab.py."""
import numpy as np
import torch
import torch.nn.functional as F

from lab_model import Lines, forward, pack

TRAIN, GIVEN, TEST = 0, 1, 2


class Data:
    def __init__(self, path):
        d = np.load(path)
        self.ids, self.rows, self.options = d["ids"].astype(np.int64), d["rows"], d["options"]
        self.names, self.group, self.clear = [str(n) for n in d["names"]], d["group"], d["clear"]
        self.groups, self.newline = [str(g) for g in d["groups"]], int(d["newline"])
        self.task = self.rows[:, 0]
        key = self.task * 3 + self.rows[:, 1]
        order = np.argsort(key, kind="stable")
        cut = np.searchsorted(key[order], np.arange(3 * len(self.names) + 1))
        self.of = {(t, u): order[cut[3 * t + u]:cut[3 * t + u + 1]]
                   for t in range(len(self.names)) for u in (TRAIN, GIVEN, TEST)}

    def prompt(self, i):
        r = self.rows[i]
        return self.ids[r[2]:r[2] + r[3]].tolist()

    def choices(self, i):
        """Option ids as scored: a short answer ends with a line feed."""
        r = self.rows[i]
        out = [self.ids[a:a + n].tolist() for a, n, _ in self.options[r[8]:r[8] + r[9]]]
        return out if r[11] else [out[0] + [self.newline]]

    def answer(self, i):
        r = self.rows[i]
        a, n, _ = self.options[r[8] + r[10]]
        return self.ids[a:a + n].tolist() + [self.newline]

    def worked(self, rows):
        """Ids of rows with their answers, one behind another."""
        return tuple(x for i in rows for x in self.prompt(i) + self.answer(i))

    def content(self, i):
        r = self.rows[i]
        return list(range(r[4], r[5])) + list(range(r[6], r[7]))

    def given(self, task, seed, n=8):
        """The user's n examples; each seed draws others where there are enough."""
        have = self.of[task, GIVEN]
        if len(have) <= n:
            return have
        return np.array([have[((seed - 1) * n + k) % len(have)] for k in range(n)])


class RowSet:
    """Rows to score, packed and on the device. front: per row, rows of its task to show with their answers in front
    (the first are left out where they do not fit)."""

    def __init__(self, data, idx, base, right_only=False, by_task=False, front=None, lengths=(256, 512, 1024)):
        self.idx, self.data, self.base = np.asarray(idx), data, base
        self.task = data.task[self.idx]
        rows, fronts, worked = [], [], {}
        for k, i in enumerate(self.idx):
            options = [data.answer(i)] if right_only else data.choices(i)
            room = lengths[-1] - sum(map(len, options))
            rows.append((data.prompt(i)[-max(room, 1):], options))
            if front:
                shown, room = tuple(front[k]), room - len(rows[-1][0])
                while shown and len(worked.setdefault(shown, data.worked(shown))) > room:
                    shown = shown[1:]
                fronts.append(worked[shown] if shown else ())
        size = np.array([len(p) + sum(map(len, o)) for p, o in rows])
        self.parts = []
        assert len(lengths) == 1 or not (by_task or front)
        for k, s in enumerate(lengths):
            mine = np.flatnonzero((size <= s) & (size > (lengths[k - 1] if k else 0)))
            if len(mine):
                lines = Lines([rows[m] for m in mine], s, self.task[mine] if by_task else None, [fronts[m] for m in mine] if front else None)
                self.parts.append(Part(lines, mine, [data.rows[self.idx[m]] for m in mine], data, base, right_only))
        assert sum(len(p.mine) for p in self.parts) == len(self.idx)
        self.tokens = sum(p.lines.tokens for p in self.parts)

    def __len__(self):
        return len(self.idx)

    @torch.no_grad()
    def hidden(self, form=None, ad=None, w=None, scale=2.0):
        """Per part the last hidden states of its entries. w: weights by row [n_rows, n] or None."""
        return [p.run(form, ad, None if w is None else w[p.mine_dev], scale) for p in self.parts]

    @torch.no_grad()
    def score(self, form=None, ad=None, w=None, scale=2.0, hidden=None, add=None):
        """Per row (correct, loss, nll) as numpy. hidden: of this set, if there already; add: see Part.logprobs."""
        out = torch.zeros(3, len(self.idx), device=self.base.device)
        for p, x in zip(self.parts, hidden or self.hidden(form, ad, w, scale)):
            lp, greedy = p.logprobs(x, slice(0, len(x)), add)
            out[:, p.mine_dev] = p.measure(lp, greedy)
            p.last = p.option_sums(lp)
        return out.cpu().numpy()

    def option_scores(self):
        """Sum of log-probabilities of every option of the last score, per row, in row order."""
        out = [None] * len(self.idx)
        for p in self.parts:
            sums = p.last.cpu().numpy()
            for k, m in enumerate(p.mine):
                out[m] = sums[p.first[k]:p.first[k] + p.count[k]]
        return out


class ChainLines:
    """Chains of rows, each answer in front of the next prompt, in lines of length s as Lines has them: one group a task."""

    def __init__(self, data, tasks, s):
        """tasks: per task its chains, lists of rows."""
        self.s, self.groups = s, list(range(len(tasks)))
        ids = [[data.worked(c)[:s] for c in chains] for chains in tasks]
        packed = [pack([len(c) for c in chains], s) for chains in ids]
        self.per = max(n for n, _ in packed)
        self.n = self.per * len(tasks)
        self.ids, self.pos, self.opt = (np.zeros((self.n, s), np.int64) for _ in range(3))
        self.row = np.full((self.n, s), -1, np.int64)
        src, target, owner, self.place, self.row_of_option = [], [], [], [], []
        for g, (chains, (_, places)) in enumerate(zip(tasks, packed)):
            for c, (chain, (k, at)) in enumerate(zip(chains, places)):
                line, n = g * self.per + k, len(ids[g][c])
                self.ids[line, at:at + n], self.pos[line, at:at + n], self.row[line, at:at + n] = ids[g][c], np.arange(n), len(self.place)
                for i in chain:
                    at += len(data.prompt(i))
                    answer = data.answer(i)
                    room = min(len(answer), s - at)  # of a row that is longer than a line
                    src += list(range(line * s + at - 1, line * s + at + room - 1))
                    target += answer[:max(room, 0)]
                    owner += [len(self.row_of_option)] * max(room, 0)
                    self.place.append((line, at))
                    self.row_of_option.append(len(self.row_of_option))
                    at += len(answer)
        self.n_options = len(self.row_of_option)
        self.src, self.target, self.owner = (np.array(x, np.int64) for x in (src, target, owner))
        self.tokens = sum(len(c) for chains in ids for c in chains)


class Chains:
    """The examples of tasks as `pool train --worked` puts them for one step: shuffled, in chains of 2 to worked + 1 rows of at
    most s tokens, each answer in front of the next prompt. For TaskAdapters.tune."""

    def __init__(self, data, given, base, worked, s, seed):
        """given: per task its rows."""
        rng, tasks = np.random.default_rng(seed), []
        for mine in given:
            rows, chains = rng.permutation(mine).tolist(), []
            while rows:
                want, tokens, n = int(rng.integers(2, worked + 2)), 0, 0
                while n < min(want, len(rows)):
                    tokens += len(data.prompt(rows[n])) + len(data.answer(rows[n]))
                    if n and tokens > s:
                        break
                    n += 1
                chains.append(rows[:n])
                rows = rows[n:]
            tasks.append(chains)
        self.lines, order = ChainLines(data, tasks, s), [i for chains in tasks for c in chains for i in c]
        self.parts = [Part(self.lines, np.arange(len(order)), [data.rows[i] for i in order], data, base, True)]


class Part:
    def __init__(self, lines, mine, rows, data, base, right_only):
        dev = base.device
        self.lines, self.mine, self.base = lines, mine, base
        self.mine_dev = torch.as_tensor(mine, device=dev)
        put = lambda x: torch.as_tensor(x, device=dev)
        self.ids, self.pos, self.row, self.opt = put(lines.ids), put(lines.pos), put(lines.row), put(lines.opt)
        order = np.argsort(lines.src, kind="stable")
        self.src_np = lines.src[order]
        self.src, self.target, self.owner = put(self.src_np), put(lines.target[order]), put(lines.owner[order])
        self.count = np.array([1 if right_only or not r[11] else r[9] for r in rows])
        self.first = np.concatenate(([0], np.cumsum(self.count)[:-1]))
        most = int(self.count.max())
        table = np.full((len(rows), most), lines.n_options)
        nbytes = np.ones(lines.n_options + 1)
        for k, r in enumerate(rows):
            for o in range(self.count[k]):
                table[k, o] = self.first[k] + o
                nbytes[self.first[k] + o] = data.options[r[8] + (r[10] if right_only else o)][2]
        self.table, self.bytes = put(table), put(nbytes).float()
        self.right = put(np.array([0 if right_only or not r[11] else r[10] for r in rows]))
        self.mc = put(np.array([bool(r[11]) and not right_only for r in rows]))
        self.length = torch.zeros(lines.n_options + 1, device=dev).index_add_(
            0, self.owner, torch.ones(len(self.owner), device=dev))
        self.line_of = put(np.array([k for k, _ in lines.place]))
        self.row_of_entry = put(np.array(lines.row_of_option))[self.owner]

    def chunk(self, a, b, form, ad, w, scale, upto=None):
        row = self.row[a:b]
        wt = None if w is None else w[row.clamp(min=0)].to(self.base.dtype)
        return forward(self.base, self.ids[a:b], self.pos[a:b], row, self.opt[a:b], form, ad, wt, scale, upto)

    def entries(self, a, b):
        s = self.lines.s
        return slice(int(np.searchsorted(self.src_np, a * s)), int(np.searchsorted(self.src_np, b * s)))

    def at(self, h, a, e):
        """Of the hidden states of a chunk that begins at line a, those of the entries e."""
        return h.flatten(0, 1)[self.src[e] - a * self.lines.s]

    def logprobs(self, x, e, add=None):
        """(log-probability, is it the argmax) of the entries e, whose hidden states are x. add(part, entries, x, logits)
        returns other logits."""
        out, hit = [], []
        for i in range(e.start, e.stop, 8192):
            k = slice(i, min(i + 8192, e.stop))
            mine = x[i - e.start:k.stop - e.start]
            logits = (mine @ self.base.head.T).float()
            if add is not None:
                logits = add(self, k, mine.float(), logits)
            t = logits.gather(1, self.target[k, None])[:, 0]
            out.append(t - logits.logsumexp(1))
            hit.append(t >= logits.max(1).values)
        return torch.cat(out), torch.cat(hit)

    def per_call(self):
        return max(1, (65536 if str(self.base.device).startswith("cuda") else 8192) // self.lines.s)

    def run(self, form, ad, w, scale):
        out, step = [], self.per_call()
        for a in range(0, self.lines.n, step):
            b = min(a + step, self.lines.n)
            e = self.entries(a, b)
            if e.stop > e.start:
                out.append(self.at(self.chunk(a, b, form, ad, w, scale), a, e))
        return torch.cat(out)

    def option_sums(self, lp, e=slice(None)):
        return torch.zeros(self.lines.n_options + 1, device=lp.device).index_add(0, self.owner[e], lp)

    def losses(self, sums, rows=slice(None)):
        """Per row (loss, nll, choice) of docs/method.md."""
        table = self.table[rows]
        per = sums / self.bytes
        per = torch.where(torch.arange(len(sums), device=sums.device) == self.lines.n_options, -1e9, per)
        at = table.gather(1, self.right[rows, None])[:, 0]
        nll = -sums[at] / self.length[at]
        ce = -F.log_softmax(8 * per[table], 1).gather(1, self.right[rows, None])[:, 0]
        return torch.where(self.mc[rows], ce + 0.3 * nll, nll), nll, per[table].argmax(1)

    def measure(self, lp, hit):
        sums = self.option_sums(lp)
        loss, nll, choice = self.losses(sums)
        missed = torch.zeros(self.lines.n_options + 1, device=lp.device).index_add_(0, self.owner, (~hit).float())
        exact = missed[self.table[:, 0]] == 0
        return torch.stack((torch.where(self.mc, choice == self.right, exact).float(), loss, nll))


def embed(base, data, idx, upto=None):
    """(q_x [n, d], mean hidden state [n, d] after `upto` layers, else half of them) of rows, float32 on the device."""
    dev = base.device
    out = torch.zeros(2, len(idx), base.d, device=dev)
    prompts = [data.prompt(i) for i in idx]
    g = base.w[0][0].float()
    for k, s in enumerate((256, 1024)):
        mine = [m for m, p in enumerate(prompts) if (len(p) <= s) and (k == 0 or len(p) > 256)]
        if not mine:
            continue
        lines = Lines([(prompts[m], []) for m in mine], s)
        pos, owner = [], []
        for j, m in enumerate(mine):
            line, at = lines.place[j]
            c = data.content(idx[m])
            pos += [line * s + at + x for x in c]
            owner += [m] * len(c)
        order = np.argsort(pos)
        pos, owner = np.array(pos)[order], np.array(owner)[order]
        step = max(1, (65536 if str(dev).startswith("cuda") else 8192) // s)
        put = lambda x: torch.as_tensor(x, device=dev)
        for a in range(0, lines.n, step):
            b = min(a + step, lines.n)
            with torch.no_grad():
                ids = put(lines.ids[a:b])
                h = forward(base, ids, put(lines.pos[a:b]), put(lines.row[a:b]), put(lines.opt[a:b]),
                            upto=upto or base.layers // 2).flatten(0, 1).float()
                x = base.emb[ids].flatten(0, 1).float()
                x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + base.eps) * g
                lo, hi = np.searchsorted(pos, (a * s, b * s))
                at, who = put(pos[lo:hi] - a * s), put(owner[lo:hi])
                out[0].index_add_(0, who, x[at])
                out[1].index_add_(0, who, h[at])
    n = torch.tensor([len(data.content(i)) for i in idx], device=dev, dtype=torch.float32)
    out /= n[:, None]
    return out[0] @ base.w[0][1][:base.d].float().T, out[1]


class Batches:
    """All steps of a training: rows of the tasks in a seeded order, packed into `lines` lines of `s`."""

    def __init__(self, data, tasks, seed, epochs, lines, s):
        rng = np.random.default_rng(seed)
        all_rows = np.concatenate([data.of[t, TRAIN] for t in tasks])
        r = data.rows[all_rows]
        start, prompt, answer = r[:, 2], r[:, 3], data.options[r[:, 8], 1] + 1  # the option lies behind its prompt
        size = (prompt + answer).tolist()
        place = np.zeros(len(data.names), np.int32)
        place[tasks] = np.arange(len(tasks))
        order = np.concatenate([rng.permutation(len(all_rows)) for _ in range(epochs)])
        steps, cur, room = [], [], [s] * lines
        for i in order.tolist():
            n = size[i]
            k = next((k for k, x in enumerate(room) if x >= n), None)
            if k is None:
                steps.append(cur)
                cur, room, k = [], [s] * lines, 0
            cur.append((i, k * s + s - room[k]))
            room[k] -= n
        steps.append(cur)
        self.n, self.tokens, self.s, self.lines, self.row_id = len(steps), int(sum(size)) * epochs, s, lines, all_rows
        shape = (self.n, lines * s)
        self.ids, self.pos, self.row = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        most = -(-max(sum(int(answer[i]) for i, _ in c) for c in steps) // 64) * 64
        self.src, self.target = np.zeros((self.n, most), np.int32), np.zeros((self.n, most), np.int32)
        self.weight = np.zeros((self.n, most), np.float32)
        count = np.arange(max(s, 4096))
        for t, c in enumerate(steps):
            m = 0
            ids, pos, row = self.ids[t], self.pos[t], self.row[t]
            for i, at in c:
                n, b, p, a = size[i], start[i], int(prompt[i]), int(answer[i])
                ids[at:at + n - 1] = data.ids[b:b + n - 1]
                ids[at + n - 1] = data.newline
                pos[at:at + n] = count[:n]
                row[at:at + n] = i
                self.src[t, m:m + a] = count[:a] + (at + p - 1)
                self.target[t, m:m + a] = ids[at + p:at + n]
                self.weight[t, m:m + a] = 1 / (a * len(c))
                m += a
        self.task = place[data.task[all_rows]][np.maximum(self.row, 0)]
        for x in ("ids", "pos", "row", "task"):
            setattr(self, x, getattr(self, x).reshape(self.n, lines, s))
