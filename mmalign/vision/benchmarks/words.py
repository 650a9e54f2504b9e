"""Words of English text, and which of them stand for things that a list knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

MISSING_NLTK = (
    "nouns: nltk reads nouns as AMBER's own script does and needs the package nltk and three data "
    "sets of it: pip install nltk, then python -m nltk.downloader punkt_tab "
    "averaged_perceptron_tagger_eng wordnet; or set nouns: plain, which needs neither and does not "
    "tell a noun from a verb of the same form"
)
MISSING_VECTORS = (
    "similarity needs the package spacy and the model {name}: pip install spacy, then python -m "
    "spacy download {name}; or set similarity: null, which leaves out near synonyms that the word "
    "lists do not hold and so counts more words as hallucinated than the published script"
)


def tokens(text: str) -> list[str]:
    """The words of a text in lower case, and its marks; a hyphen joins two words to one."""
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*|[^\sa-z0-9]", text.lower())


def known_form(word: str, known: Collection[str]) -> str:
    """The word, or its singular where the list knows that alone.

    A word of the list is never changed, since a rule for plurals would take the end of ``bus``.
    """
    return word if word in known or not word[0].isalpha() else _singular(word)


def plain_nouns(text: str, known: Collection[str]) -> list[str]:
    """The words of the list that a text names, singular, in its order."""
    forms = (known_form(word, known) for word in tokens(text))
    return [form for form in forms if form in known]


def nltk_nouns(text: str, known: Collection[str]) -> list[str]:
    """The nouns of a text, as nltk tags and lemmatises them, that the list knows.

    Raises:
        ValueError: nltk or its data is not installed.
    """
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer

        lemmatise = WordNetLemmatizer().lemmatize
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        lemmas = [lemmatise(word) for word, tag in tagged if tag.startswith("NN")]
    except (ImportError, LookupError) as error:
        raise ValueError(MISSING_NLTK) from error
    return [lemma for lemma in lemmas if lemma in known]


def never_similar(first: str, second: str) -> bool:
    """No two words are near synonyms."""
    del first, second
    return False


def similar_in(name: str, *, above: float) -> Callable[[str, str], bool]:
    """Whether a spaCy model finds two words more similar than a threshold.

    Raises:
        ValueError: spaCy or the model is not installed, or the model has no word vectors.
    """
    try:
        import spacy

        read: Any = spacy.load(name)
    except (ImportError, OSError) as error:
        raise ValueError(MISSING_VECTORS.format(name=name)) from error
    if not len(read.vocab.vectors):
        raise ValueError(f"the spaCy model {name} has no word vectors; use en_core_web_lg")
    vector = cache(read)
    return cache(lambda first, second: bool(vector(first).similarity(vector(second)) > above))


@cache
def _singular(word: str) -> str:
    singular = _plurals().singular_noun(word)
    return str(singular) if singular else word


@cache
def _plurals() -> Any:
    import inflect

    return inflect.engine()
