"""Grades that people believe: textbook answers are relevant, other questions' answers are not.

The pairs were written before the model was asked, and nothing is fitted to them.
"""

from __future__ import annotations

import numpy as np
import pytest

from darl_rerank import Reranker
from darl_rerank.results import PairScores

QUESTIONS_AND_ANSWERS = [
    ("what is the capital of france", "Paris is the capital and largest city of France."),
    ("how many bones are in the human body", "An adult human skeleton has 206 bones."),
    ("who wrote romeo and juliet", "Romeo and Juliet is a tragedy written by William Shakespeare."),
    ("what gas do plants absorb", "During photosynthesis plants take in carbon dioxide and release oxygen."),
    ("how far is the moon from earth", "The Moon is on average about 384,400 kilometres away from Earth."),
    ("when did the berlin wall fall", "The Berlin Wall fell on 9 November 1989."),
    ("what is the chemical symbol for gold", "Gold is a chemical element with the symbol Au and atomic number 79."),
    ("who painted the mona lisa", "The Mona Lisa was painted by Leonardo da Vinci in the early 16th century."),
    (
        "at what temperature does water boil",
        "At sea level water boils at 100 degrees Celsius, or 212 degrees Fahrenheit.",
    ),
    ("what is the longest river in africa", "The Nile, about 6,650 kilometres long, is the longest river in Africa."),
    (
        "how many players are on a soccer team",
        "In soccer each team has eleven players on the field, one of them the goalkeeper.",
    ),
    ("what causes tides", "Tides are caused by the gravitational pull of the Moon and the Sun on the oceans."),
    ("who invented the telephone", "Alexander Graham Bell was awarded the first patent for the telephone in 1876."),
    (
        "what is the powerhouse of the cell",
        "Mitochondria, the powerhouse of the cell, produce most of its energy as ATP.",
    ),
    (
        "how long does it take to hard boil an egg",
        "To hard boil an egg, leave it in boiling water for nine to twelve minutes.",
    ),
    (
        "what language is spoken in brazil",
        "Portuguese is the official language of Brazil and is spoken by nearly all Brazilians.",
    ),
    ("why is the sky blue", "The sky looks blue because air scatters blue light from the sun more than red light."),
    ("what is the largest planet in the solar system", "Jupiter is the largest planet in the solar system."),
    (
        "how do vaccines work",
        "Vaccines train the immune system to recognise a pathogen by showing it a harmless part of it.",
    ),
    ("what is the square root of 144", "The square root of 144 is 12, since 12 times 12 is 144."),
]

# Two answers that the model takes for irrelevant, by .06 of a cut point; that of version 0.3 took them for related.
MISJUDGED = {"what gas do plants absorb", "how do vaccines work"}
RELATED, RELEVANT = 1, 2


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    # A score lies .015 above a cut point, less than what bfloat16 can move it.
    return Reranker.from_pretrained(engine="torch", device="cpu", precision="float32")


def pairs() -> list[tuple[str, str]]:
    """Each question with its answer, then each with the next one's."""
    following = [*QUESTIONS_AND_ANSWERS[1:], QUESTIONS_AND_ANSWERS[0]]
    others = [(question, answer) for (question, _), (_, answer) in zip(QUESTIONS_AND_ANSWERS, following, strict=True)]
    return [*QUESTIONS_AND_ANSWERS, *others]


@pytest.fixture(scope="module")
def scores(reranker: Reranker) -> PairScores:
    return reranker.score_pairs(pairs())


def test_textbook_answers_are_relevant_and_others_are_not(scores: PairScores) -> None:
    count = len(QUESTIONS_AND_ANSWERS)
    low = {QUESTIONS_AND_ANSWERS[i][0] for i in np.flatnonzero(scores.grade[:count] < RELEVANT)}
    assert low <= MISJUDGED
    assert (scores.grade[count:] <= RELATED).all()
    # Each answer stands above every other question's, those two as well.
    assert scores.score[:count].min() > scores.score[count:].max()


def test_of_traffic_that_is_mostly_good_all_answers_are_relevant(reranker: Reranker, scores: PairScores) -> None:
    shares = (0.1, 0.1, 0.4, 0.4)
    shifted = reranker.checkpoint.calibration.for_prevalence(shares).probabilities(scores.logits, scores.novelty)
    grade = reranker.checkpoint.grade_cuts.grades(shifted @ reranker.scale.gains)
    count = len(QUESTIONS_AND_ANSWERS)
    assert (grade[:count] >= RELEVANT).all()
    assert (grade[count:] <= RELATED).all()
    told = reranker.score_pairs(pairs()[:2], prevalence=shares)
    assert told.grade.tolist() == grade[:2].tolist()
    assert np.allclose(told.probabilities, shifted[:2], atol=0.02)
