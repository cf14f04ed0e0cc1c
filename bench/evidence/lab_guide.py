# SPDX-License-Identifier: Apache-2.0
"""Several prompts for one answer: their next-token distributions are multiplied with exponents; for lab.py.

`orders`: the user's examples in front in several orders, equal exponents that add up to 1. `guide a`: exponent 1 + a
for the prompt with examples in front and -a for the one without, so that what the examples say counts more (classifier-free
guidance: Sanchez et al., 2023; context-aware decoding: Shi et al., 2023); a < 0 mixes both.
"""
import numpy as np
import torch


class Prompts:
    def __init__(self, sets, hidden):
        """sets: RowSets of the same rows in one part each, the first the one that is scored; hidden: theirs."""
        order = [torch.as_tensor(np.argsort(s.parts[0].owner.cpu().numpy(), kind="stable"), device=s.base.device) for s in sets]
        place = torch.empty_like(order[0])
        place[order[0]] = torch.arange(len(place), device=place.device)
        self.sets, self.hidden = sets, [h[0][o][place] for h, o in zip(hidden, order)]

    def score(self, exponents):
        """As RowSet.score. exponents: by set."""
        def add(part, k, x, logits):
            out = 0
            for e, h in zip(exponents, self.hidden):
                if e:
                    out = out + e * (h[k] @ part.base.head.T).float().log_softmax(1)
            return out
        return self.sets[0].score(hidden=[self.hidden[0]], add=add)
