#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws which tasks train the pools, which choose the method and which are only tested; development only.

usage: split.py TASK_DIR > split.json

TASK_DIR holds MANIFEST.json and NAME.{train,test,dev}.jsonl.xz. Tasks made from the same source set
form one family and stay on one side, so an unseen task never shares rows with the pool. Per kind of
task (STRATA) families are shuffled by a fixed seed; the first sixth, at least one, is unseen, the next
eighth, at least one, is for validation, the rest trains pools. MMLU is unseen as a whole (its dev rows
are the user's examples), so are tasks without a train split. Made once, before the first run;
`split.json` is committed and is not made again. Standard library only.
"""
import json
import random
import re
import sys

SEED = "crayon evidence 1"
STRATA = {
    "science and common sense": "arc_ openbookqa qasc commonsenseqa csqa2 social_iqa piqa winogrande hellaswag copa strategyqa "
                                "sni_task033 sni_task073 sni_task080 sni_task037 sni_task1398 sni_task156 sni_task1581",
    "reading": "boolq squad_xquad_en fever",
    "topic, intent, sentiment": "dbpedia14 trec clinc150 banking77 snips sst2 sst5 rt_polarity subjectivity "
                                "customer_reviews sni_task1289 sni_task363",
    "language": "blimp rte mnli cb",
    "mathematics": "gsm8k svamp aqua_rat",
    "closed-book facts": "nq_open webquestions hotpotqa_closed sni_task582 sni_task1412 sni_task1293",
    "trivia": "trivia_", "bAbI": "babi", "BIG-Bench Hard": "bbh_", "personas": "persona_",
    "tool selection": "tool_", "P3": "p3",
}
FAMILIES = """arc_easy arc_challenge
openbookqa sni_task1398_obqa_question_generation
qasc sni_task037_qasc_generate_related_fact sni_task1581_eqasc-perturbed_answer_generation
commonsenseqa sni_task073_commonsenseqa_answer_generation
piqa sni_task080_piqa_answer_generation
winogrande sni_task033_winogrande_answer_generation
boolq boolq_closed
trec sni_task1289_trec_classification
sst2 sst5 rt_polarity sni_task363_sst2_polarity_classification
nq_open sni_task582_naturalquestion_answer_generation
webquestions sni_task1412_web_questions_question_answering
hotpotqa_closed sni_task1293_kilt_tasks_hotpotqa_question_answering
bbh_logical_deduction_three_objects bbh_logical_deduction_five_objects bbh_logical_deduction_seven_objects
bbh_tracking_shuffled_objects_three_objects bbh_tracking_shuffled_objects_five_objects bbh_tracking_shuffled_objects_seven_objects
sni_task1411_dart_subject_identification sni_task1413_dart_object_identification
sni_task898_freebase_qa_answer_generation sni_task900_freebase_qa_category_classification
sni_task1195_disflqa_disfluent_to_fluent_conversion sni_task1622_disfl_qa_text_modication
sni_task151_tomqa_find_location_easy_clean sni_task152_tomqa_find_location_easy_noise
sni_task861_asdiv_addsub_question_answering sni_task862_asdiv_multidiv_question_answering sni_task863_asdiv_multiop_question_answering
sni_task866_mawps_multidiv_question_answering sni_task867_mawps_multiop_question_answering sni_task868_mawps_singleop_question_answering
sni_task922_event2mind_word_generation sni_task924_event2mind_word_generation
sni_task293_storycommonsense_emotion_text_generation sni_task294_storycommonsense_motiv_text_generation
sni_task1452_location_entity_extraction_btc_corpus sni_task1453_person_entity_extraction_btc_corpus sni_task1479_organization_entity_extraction_btc_corpus
sni_task1146_country_capital sni_task1147_country_currency sni_task1314_country_abbreviation sni_task1317_country_calling_code sni_task1318_country_national_dish sni_task1320_country_domain_tld sni_task1425_country_iso_numeric sni_task1426_country_independence_year"""
NOT_CLEAR = re.compile(r"no licence|not stated|research|unknown|terms|mixed|see data card|\?|dedicated|ccpl|wordnet", re.I)


def stratum(task):
    for name, starts in STRATA.items():
        if any(task.startswith(s) for s in starts.split()):
            return name
    return "Super-NaturalInstructions"


def main(folder):
    tasks = {}
    for r in json.load(open(folder + "/MANIFEST.json")):
        tasks.setdefault(r["task"], {})[r["split"]] = r
    family = {t: line.split()[0] for line in FAMILIES.split("\n") for t in line.split()}
    unknown = set(family) - set(tasks)
    assert not unknown, unknown
    out = {"seed": SEED, "kind": {}, "pool": [], "validation": [], "unseen": [], "mmlu": []}
    groups = {}
    for t, splits in sorted(tasks.items()):
        if t.startswith("mmlu"):
            out["mmlu"].append(t)
        elif not any(s.startswith("train") for s in splits):
            out["unseen"].append(t)
            out["kind"][t] = stratum(t)
        else:
            groups.setdefault(stratum(t), {}).setdefault(family.get(t, t), []).append(t)
    for kind, families in sorted(groups.items()):
        order = sorted(families)
        random.Random(SEED + kind).shuffle(order)
        unseen = max(1, round(len(order) / 6)) if len(order) > 1 else 0
        validation = max(1, round(len(order) / 8)) if len(order) > 2 else 0
        for i, f in enumerate(order):
            side = "unseen" if i < unseen else "validation" if i < unseen + validation else "pool"
            out[side] += families[f]
            out["kind"].update((t, kind) for t in families[f])
    out["clear_licence"] = sorted(t for t in out["pool"]
                                  if not any(NOT_CLEAR.search(r["licence"]) for r in tasks[t].values()))
    for side in ("pool", "validation", "unseen"):
        out[side].sort()
    json.dump(out, sys.stdout, indent=1)
    print()


main(sys.argv[1])
