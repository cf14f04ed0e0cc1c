#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes data/train.jsonl.xz and data/eval.jsonl.xz from the task files (development only).

usage: tools/make_data.py TASK_DIR     with TASK_DIR/NAME.{train,test}.jsonl.xz

Only tasks with a clear licence are taken (data/NOTICE.md). A fixed seed draws the rows; rows longer
than 700 characters are left out, so that a small model trains on them quickly. Train rows come from
the train split, test rows from the test split, and the user's examples from the train split, rows
that data/train.jsonl.xz does not hold.
"""
import json
import lzma
import random
import sys

POOL = """banking77 clinc150 dbpedia14 arc_easy openbookqa commonsenseqa winogrande piqa strategyqa
boolq_closed blimp csqa2 babi fever copa svamp bbh_boolean_expressions bbh_object_counting
bbh_navigate trivia_geography trivia_science_technology trivia_movies trivia_sports
persona_extraversion persona_interest_in_math persona_risk_averse persona_agreeableness
tool_select_bfcl tool_select_torchhub sni_task900_freebase_qa_category_classification
sni_task1146_country_capital sni_task1147_country_currency sni_task565_circa_answer_generation
sni_task1453_person_entity_extraction_btc_corpus sni_task471_haspart_answer_generation
sni_task1411_dart_subject_identification""".split()
UNSEEN = """snips arc_challenge persona_openness trivia_history bbh_ruin_names
sni_task1452_location_entity_extraction_btc_corpus sni_task1413_dart_object_identification
sni_task1320_country_domain_tld sni_task898_freebase_qa_answer_generation hellaswag""".split()
TRAIN_ROWS, TEST_ROWS, EXAMPLES, MAX_CHARS = 320, 60, 16, 700
KEEP = ("question", "context", "choices", "answer", "aliases")


def rows(path):
    with lzma.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            if "task" in row and row.get("answer") not in (None, ""):
                text = row["question"] + (row.get("context") or "") + " ".join(row.get("choices") or [])
                if len(text) <= MAX_CHARS:
                    yield row


def clean(row, task, **more):
    out = {"task": task, **more}
    out.update((k, row[k]) for k in KEEP if row.get(k) not in (None, []))
    return json.dumps(out, ensure_ascii=False)


def main(folder):
    train, evals = [], []
    for group, tasks in (("pool", POOL), ("unseen", UNSEEN)):
        for task in tasks:
            rng = random.Random("crayon " + task)
            have = list(rows(f"{folder}/{task}.train.jsonl.xz"))
            rng.shuffle(have)
            examples, have = have[:EXAMPLES], have[EXAMPLES:]
            test = list(rows(f"{folder}/{task}.test.jsonl.xz"))
            rng.shuffle(test)
            if group == "pool":
                train += [clean(r, task) for r in have[:TRAIN_ROWS]]
            evals += [clean(r, task, group=group, split="examples") for r in examples]
            evals += [clean(r, task, group=group, split="test") for r in test[:TEST_ROWS]]
    for path, lines in (("data/train.jsonl.xz", train), ("data/eval.jsonl.xz", evals)):
        with lzma.open(path, "wt", encoding="utf-8", preset=9) as f:
            f.write("\n".join(lines) + "\n")
        print(path, len(lines), "rows")


main(sys.argv[1])
