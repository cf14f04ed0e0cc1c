# SPDX-License-Identifier: Apache-2.0
"""Questions with two answers each, for lm-eval and for the golden log-likelihoods."""
ROWS = [("The sea is", ["wet", "a kind of bread"]), ("A cat is an", ["animal", "engine of trains"]),
        ("Two and two make", ["four", "a red house"]), ("Bread is made of", ["flour", "stone and sand"])]
