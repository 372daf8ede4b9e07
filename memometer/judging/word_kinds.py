"""Everyday words by kind, for wrong answers that are too general, or of the right kind but another thing."""

from __future__ import annotations

import re

KINDS: dict[str, tuple[str, ...]] = {
    "an animal": ("dog", "cat", "rabbit", "horse", "bird", "fish", "turtle", "hamster", "snake", "parrot", "lizard"),
    "a musical instrument": ("guitar", "violin", "piano", "drums", "clarinet", "flute", "trumpet", "ukulele", "cello"),
    "a kind of craft": ("pottery", "knitting", "sewing", "crochet", "painting", "drawing", "sculpture", "woodworking"),
    "a kind of sport": ("soccer", "basketball", "tennis", "hiking", "swimming", "running", "yoga", "climbing",
                        "surfing", "cycling", "skiing", "boxing", "volleyball", "golf", "rowing"),
    "some food": ("pizza", "pasta", "soup", "salad", "cake", "cookies", "bread", "sushi", "curry", "tacos", "steak",
                  "chicken", "salmon", "pancakes", "pie", "lasagna", "chocolate", "ice cream"),
    "a drink": ("coffee", "tea", "wine", "beer", "juice", "lemonade", "smoothie"),
    "a colour": ("red", "blue", "green", "yellow", "purple", "orange", "black", "white", "pink"),
    "a country": ("Sweden", "Norway", "France", "Spain", "Italy", "Japan", "Canada", "Brazil", "India", "Germany",
                  "Ireland", "Mexico", "Thailand", "Portugal", "Greece", "Australia", "England"),
    "a city": ("Paris", "London", "Rome", "Boston", "Chicago", "Seattle", "Tokyo", "Barcelona", "Toronto", "Miami",
               "Berlin", "Dublin", "Vancouver", "Sydney", "Phoenix"),
    "a relative": ("mother", "father", "sister", "brother", "grandmother", "grandfather", "aunt", "uncle", "cousin",
                   "husband", "wife", "son", "daughter", "mom", "dad", "grandma"),
    "a kind of job": ("nurse", "teacher", "doctor", "engineer", "chef", "lawyer", "counselor", "writer", "artist",
                      "designer", "accountant", "mechanic", "photographer", "actor", "chemist"),
    "a health problem": ("asthma", "diabetes", "allergy", "flu", "migraine", "arthritis", "anxiety", "insomnia",
                         "gastritis", "fever", "cold"),
    "a vehicle": ("car", "truck", "bike", "motorcycle", "van", "boat", "train", "bus", "scooter"),
    "some furniture": ("lamp", "table", "chair", "sofa", "shelf", "desk", "bed", "mirror", "rug"),
    "something to wear": ("shirt", "dress", "shoes", "hat", "scarf", "jacket", "necklace", "ring", "bracelet", "boots"),
    "something to read or watch": ("book", "film", "movie", "series", "song", "podcast", "poem", "novel", "play"),
    "a place": ("beach", "park", "forest", "mountain", "lake", "museum", "zoo", "library", "church", "school", "gym",
                "cafe", "restaurant", "theater", "farm", "desert", "island"),
    "an event": ("wedding", "birthday", "concert", "parade", "festival", "conference", "workshop", "graduation",
                 "picnic", "marathon", "exhibition"),
    "a feeling": ("happy", "sad", "proud", "excited", "nervous", "relieved", "grateful", "scared", "angry", "calm"),
    "something in nature": ("sunset", "sunrise", "rainbow", "waterfall", "ocean", "river", "flowers", "stars"),
    "a subject": ("psychology", "biology", "history", "mathematics", "law", "nursing", "economics", "physics"),
    "a season": ("spring", "summer", "autumn", "winter", "fall"),
    "a day of the week": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}  # fmt: skip
"""General term -> words that it covers."""

_PATTERN = re.compile(
    r"\b(" + "|".join(re.escape(word) for words in KINDS.values() for word in words) + r")\b", re.IGNORECASE
)
_KIND = {word.lower(): kind for kind, words in KINDS.items() for word in words}


def first_known(text: str) -> tuple[re.Match[str], str] | None:
    """Find the first known word of a text.

    Args:
        text: The text.

    Returns:
        The match and the general term for the word; None if the text has no known word.
    """
    match = _PATTERN.search(text)
    return (match, _KIND[match[0].lower()]) if match else None
