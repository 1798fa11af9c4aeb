"""Twenty textbook questions with their answers, written before the model was asked."""

from __future__ import annotations

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


def matched() -> list[tuple[str, str]]:
    """Each question with its answer."""
    return list(QUESTIONS_AND_ANSWERS)


def mismatched() -> list[tuple[str, str]]:
    """Each question with the answer to the one after it."""
    following = [*QUESTIONS_AND_ANSWERS[1:], QUESTIONS_AND_ANSWERS[0]]
    return [(question, answer) for (question, _), (_, answer) in zip(QUESTIONS_AND_ANSWERS, following, strict=True)]
