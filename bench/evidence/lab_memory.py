# SPDX-License-Identifier: Apache-2.0
"""A memory of the user's examples at the output: what the model got wrong there is added to logits near by; for lab.py.

For every answer token i of a task's examples (each half with the other in front) it keeps the last hidden state h_i and
the token y_i. Logits of a new state h get sum_i k(h, h_i) c_i, k = exp(-|h - h_i|^2 / (tau D)) with D the mean squared
distance within the memory, and c_i over the tokens that occur there or that the model would have said. c is
fitted by `steps` functional gradient steps of kernel logistic regression on top of the model's own logits,
c += eta / rho (e_y - p), rho the mean row sum of the kernel. No gradient goes through the model.
`mix`: instead the kNN language model, p = (1 - mix) p + mix sum_i k_i e_y_i / sum_i k_i (Khandelwal et al., ICLR 2020).
"""
import math

import torch


class Memory:
    def __init__(self, rows, who, hidden, near=8):
        """rows: RowSet(right_only) of the examples, who: task number per row, hidden: its hidden states."""
        dev, head = who.device, rows.base.head
        of = torch.cat([who[p.mine_dev][p.row_of_entry] for p in rows.parts])
        h, y = torch.cat(hidden), torch.cat([p.target for p in rows.parts])
        self.tasks = {}
        for t in of.unique().tolist():
            x = h[of == t]
            logits = (x @ head.T).float()
            lse = logits.logsumexp(1, keepdim=True)
            s = torch.cat((y[of == t], logits.topk(near, 1).indices.flatten())).unique()
            x = x.float()
            d2 = torch.cdist(x, x) ** 2
            n = len(x)
            mean = d2.sum() / max(1, n * (n - 1))
            right = (y[of == t][:, None] == s).float()
            self.tasks[t] = (x, s, d2, mean.clamp(min=1e-6), logits[:, s] - lse, right)

    def fit(self, tau, eta, steps):
        """add() for Part.logprobs."""
        fitted = {}
        for t, (x, s, d2, mean, own, right) in self.tasks.items():
            k = torch.exp(-d2 / (tau * mean))
            rate = eta / k.sum(1).mean()
            rest = (1 - own.exp().sum(1, keepdim=True)).clamp(min=1e-6)
            c = torch.zeros_like(own)
            for _ in range(steps):
                e = (own + k @ c).exp()
                c = c + rate * (right - e / (rest + e.sum(1, keepdim=True)))
            fitted[t] = x, s, mean, c
        return lambda t, h, logits: self.apply(fitted[t], tau, h, logits) if t in fitted else logits

    @staticmethod
    def apply(f, tau, h, logits):
        x, s, mean, c = f
        logits[:, s] += torch.exp(-torch.cdist(h, x) ** 2 / (tau * mean)) @ c
        return logits

    def variants(self):
        for tau in (0.25, 0.5, 1.0):
            for eta, steps in ((1, 8), (3, 8), (3, 32)):
                yield "tau %g eta %g steps %d" % (tau, eta, steps), self.fit(tau, eta, steps)
        for tau, share in ((0.1, 0.3), (0.1, 0.5), (0.25, 0.3), (0.25, 0.5)):
            yield "mix %g tau %g" % (share, tau), self.mix(tau, share)

    def mix(self, tau, share):
        def add(t, h, logits):
            if t not in self.tasks:
                return logits
            x, s, _, mean, _, right = self.tasks[t]
            q = (-torch.cdist(h, x) ** 2 / (tau * mean)).softmax(1) @ right
            logits = logits.log_softmax(1)
            logits = logits + math.log(1 - share)
            most = torch.logaddexp(logits[:, s], (share * q).clamp(min=1e-30).log())
            logits[:, s] = most
            return logits
        return add

    @staticmethod
    def by_task(add, task):
        """task: task number per row of the set. An add() of Part.logprobs that calls add for each task's entries."""
        def all_tasks(part, k, h, logits):
            of = task[part.mine_dev[part.row_of_entry[k]]]
            for t in of.unique().tolist():
                at = torch.nonzero(of == t)[:, 0]
                logits[at] = add(t, h[at], logits[at])
            return logits
        return all_tasks

