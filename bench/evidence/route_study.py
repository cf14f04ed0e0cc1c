#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which questions should leave the device? Rules of docs/routing.md on the rows of route_features.py.

usage: route_study.py FEATURES.npz OUTPUT.json docs/evidence.md [PLACE]

Fills `<!-- PLACE -->` in the page (default: routing).

Learned rules are fitted on one half of the pool tasks ("device wrong and server right") and used, as they are,
on the other half and on the unseen tasks. TASK knows 8 further rows of each task with both models' answers, as
`crayon route calibrate` has them: those rows are drawn once and measure no rule. Intervals: 95 %, bootstrap over tasks and rows. Needs numpy.
"""
import json
import sys

import numpy as np

CALIBRATION = 8  # rows of a task
SHARES = np.arange(0, 51) / 100
DRAWS = 1000


def fit(x, y, l2, rounds=300):
    """Logistic regression by Newton steps on standardised features; returns a scoring function."""
    mean, sd = x.mean(0), x.std(0) + 1e-6
    z = np.c_[np.ones(len(x)), (x - mean) / sd]
    w = np.zeros(z.shape[1])
    reg = np.r_[0, np.full(z.shape[1] - 1, l2)]
    for _ in range(20):
        p = 1 / (1 + np.exp(-z @ w))
        w -= np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + np.diag(reg) + 1e-6 * np.eye(len(w)), z.T @ (p - y) + reg * w)
    return lambda v: np.c_[np.ones(len(v)), (v - mean) / sd] @ w


def curve(score, device, server, noise):
    """Accuracy when the share with the largest score is sent, at SHARES."""
    order = np.lexsort((noise, -score))
    gain = np.r_[0, np.cumsum((server.astype(float) - device)[order])]
    return (device.sum() + gain[np.round(SHARES * len(score)).astype(int)]) / len(score)


def main(path, output, page, place="routing"):
    d = np.load(path)
    task, group, x, emb = d["task"], d["group"], d["x"].astype(float), d["emb"].astype(float)
    device, server = d["device"].astype(float), d["server"].astype(float)
    y = ((device == 0) & (server == 1)).astype(float)
    names = np.unique(task[group == "pool"])
    half = set(np.random.default_rng(1).permutation(names)[:len(names) // 2])
    train = np.array([g == "pool" and t in half for t, g in zip(task, group)])
    # what the calibration rows of a task say of server minus device, drawn to the mean of the fitted half; and the
    # confidence within the task. Weights 8 and 1.6 by the fitted half and the validation tasks.
    used, prior, within = np.zeros(len(task), bool), np.zeros(len(task)), np.zeros(len(task))
    knows = np.zeros(len(task))
    rng = np.random.default_rng(1)
    gain = server - device
    for t in np.unique(task):
        of = np.flatnonzero(task == t)
        cal = rng.permutation(of)[:CALIBRATION]
        used[cal] = True
        prior[of] = (gain[cal].sum() + 8 * gain[train].mean()) / (len(cal) + 8)
        within[of] = x[of, 0].mean() - x[of, 0]
        knows[of] = gain[of].mean()
    rank = lambda v: np.argsort(np.argsort(v)) / len(v)
    conf, scope = 1 - x[:, 0], -x[:, 4]
    validation = group == "validation"
    # RouteLLM-style: prompt embeddings only; its penalty by validation tasks
    best = max((curve(fit(emb[train], y[train], l2)(emb[validation]), device[validation], server[validation], conf[validation]).mean(), l2)
               for l2 in (3, 30, 300, 3000))[1]
    rules = {
        "RANDOM": None, "CONF": conf, "SCOPE": scope,
        "CRAYON (conf low or out of scope)": np.maximum(rank(conf), rank(scope)),
        "LEARNED (conf, margin, entropy, scopes, lengths)": fit(x[train], y[train], 1.0)(x),
        "RouteLLM-style (logistic on the prompt's embedding)": fit(emb[train], y[train], best)(emb),
        "TASK (8 calibration rows, confidence within the task)": prior + 1.6 * within,
        "RouteLLM-style with the same 8 rows": fit(np.c_[emb, prior][train & ~used], y[train & ~used], best)(np.c_[emb, prior]),
        "ceiling of rules that know the task only": knows,
        "oracle": y + 0.5 * (server - device),
    }
    out, text = {"rows": int(len(task)), "fitted_on": int(train.sum()), "sets": {}}, []
    sets = {"pool tasks that no rule saw": (group == "pool") & ~train & ~used, "unseen tasks and MMLU": ((group == "unseen") | (group == "mmlu")) & ~used}
    rng = np.random.default_rng(2)
    for label, keep in sets.items():
        idx = np.flatnonzero(keep)
        by_task = [idx[task[idx] == t] for t in np.unique(task[idx])]
        draws = [np.concatenate([rng.choice(by_task[k], len(by_task[k])) for k in rng.integers(len(by_task), size=len(by_task))]) for _ in range(DRAWS)]
        noise = rng.random(len(task))
        of = lambda s, i: curve(noise if s is None else s[i] if len(s) == len(task) else s, device[i], server[i], noise[i])
        score = lambda name, i: curve(np.random.default_rng(len(i)).random(len(i)) if rules[name] is None else rules[name][i], device[i], server[i], noise[i])
        area = {n: score(n, idx).mean() for n in rules}
        drawn = {n: np.array([score(n, i).mean() for i in draws]) for n in rules}
        auroc = lambda n: 0.5 if rules[n] is None else (lambda p, q: (p[:, None] > q[None]).mean() + 0.5 * (p[:, None] == q[None]).mean())(
            rules[n][idx][device[idx] == 0], rules[n][idx][device[idx] == 1])
        text.append("\n*%s*: %d tasks, %d rows; device alone %.1f %%, server alone %.1f %%.\n" % (label, len(by_task), len(idx), 100 * device[idx].mean(), 100 * server[idx].mean()))
        text += ["| rule | 10 % sent | 20 % | 30 % | area, 0 to 50 % | against CONF | against RouteLLM-style | AUROC of \"device wrong\" |", "|" + "---|" * 8]
        out["sets"][label] = {}
        for n in rules:
            c = score(n, idx)
            cell = lambda o: "%+.2f [%+.2f, %+.2f]" % (100 * (area[n] - area[o]), *np.percentile(100 * (drawn[n] - drawn[o]), [2.5, 97.5]))
            text.append("| %s | %.1f | %.1f | %.1f | %.2f | %s | %s | %.2f |" % (n, 100 * c[10], 100 * c[20], 100 * c[30], 100 * area[n], cell("CONF"),
                                                                           cell("RouteLLM-style (logistic on the prompt's embedding)"), auroc(n)))
            out["sets"][label][n] = {"curve": [round(float(v), 4) for v in c], "area": round(float(area[n]), 5)}
    # conformal: keep on the device what the learned rule trusts most, so that accepted-and-wrong stays below epsilon
    text.append("\nConformal bound: the largest set kept on the device whose share \"kept and wrong\", with one row more counted wrong, is at most epsilon on calibration rows; "
                "200 random halves of the pool tasks' rows that no rule saw.\n")
    text += ["| epsilon | kept and wrong on fresh rows, mean | share of splits above epsilon | kept on the device |", "|---|---|---|---|"]
    idx = np.flatnonzero(sets["pool tasks that no rule saw"])
    risk = rules["LEARNED (conf, margin, entropy, scopes, lengths)"] + 0
    for eps in (0.1, 0.2, 0.3):
        got, kept = [], []
        for s in range(200):
            order = np.random.default_rng(s).permutation(idx)
            a, b = order[:len(idx) // 2], order[len(idx) // 2:]
            at = np.argsort(risk[a])
            bound = (np.cumsum(1 - device[a][at]) + 1) / (len(a) + 1)
            k = np.flatnonzero(bound <= eps)
            limit = risk[a][at][k[-1]] if len(k) else -np.inf
            take = risk[b] <= limit
            got.append((take & (device[b] == 0)).mean())
            kept.append(take.mean())
        text.append("| %.1f | %.3f | %.2f | %.2f |" % (eps, np.mean(got), np.mean(np.array(got) > eps), np.mean(kept)))
        out["conformal %.1f" % eps] = {"risk": round(float(np.mean(got)), 4), "above": float(np.mean(np.array(got) > eps)), "kept": round(float(np.mean(kept)), 4)}
    json.dump(out, open(output, "w"))
    page_text = open(page).read()
    mark = "<!-- %s -->\n" % place
    a = page_text.index(mark) + len(mark)
    b = page_text.index("<!-- end -->", a)
    with open(page, "w") as f:
        f.write(page_text[:a] + "\n".join(text) + "\n" + page_text[b:])
    print("\n".join(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
