"""The words that the stand-in knows, and the table of its tokens.

A token is a byte string: three special marks, all 256 single bytes, and English words in four shapes ("word",
" word", "Word", " Word"). Every text can therefore be written as tokens, and plain English in few of them.
"""

from __future__ import annotations

import enum
from typing import Final

END_OF_TEXT: Final = 0
TURN_START: Final = 1
TURN_END: Final = 2
"""Ends an answer: this model's EOS token."""
FIRST_BYTE: Final = 3
"""Byte b is token FIRST_BYTE + b."""

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class WordClass(enum.IntEnum):
    """What kind of word a token is: all that the grammar needs to know about it."""

    NONE = 0
    SUBJECT_DETERMINER = 1
    SUBJECT_ADJECTIVE = 2
    SUBJECT = 3
    ADVERB = 4
    VERB = 5
    DETERMINER = 6
    ADJECTIVE = 7
    OBJECT = 8
    PREPOSITION = 9
    CONJUNCTION = 10
    FULL_STOP = 11


_DETERMINERS = "the every each this that one another"
_GENERATED: Final[dict[WordClass, str]] = {
    WordClass.SUBJECT_ADJECTIVE: "quiet patient careful clever gentle steady modest curious cheerful reliable",
    WordClass.SUBJECT: (
        "router engine model kernel notebook scheduler worker replica gateway planner meter operator server "
        "researcher student teacher sailor gardener tuna dolphin captain astronomer"
    ),
    WordClass.ADVERB: "quickly calmly always often rarely gladly slowly safely usually politely",
    WordClass.VERB: (
        "carries answers counts watches follows moves keeps finds reads writes opens balances measures repeats "
        "remembers explains prepares protects"
    ),
    WordClass.ADJECTIVE: "long short first second last warm cold bright small large simple hidden early late cheap",
    WordClass.OBJECT: (
        "request stream token answer question queue price budget window batch prompt sentence chart map letter "
        "signal harbour garden river bridge story record"
    ),
    WordClass.PREPOSITION: "through under beside behind across near after before with without inside beyond",
    WordClass.CONJUNCTION: "and then",
}
# Known when read, never generated: they keep the token count of an ordinary prompt near that of a real model.
_READ_ONLY = (
    "a an I you he she it we they me my your his her its our their who what which when where why how is are was "
    "were be been am do does did have has had can could will would shall should may might must not no yes or but "
    "if in on at to of for from by as about into over up down out off only just more most less some any all both "
    "please hello hi thanks thank say tell write explain give make help list name count short word words sentence "
    "sentences story poem code text number numbers python function example system user assistant helpful time day "
    "year people world work way new good great there here now so than too very well back even also because between"
)
_PIECES = (
    "ing ed er est ly tion ment ness able un re in th he an on at en is it or es ti ar te al st nd ou le se ve ll "
    "ch sh ck qu ion ent ous ful ive ate age ant ence ance ure ity"
)
_PUNCTUATION = ". , ? ! : ; ' \" ( ) - ... \n\n"
# Half characters that a byte-pair vocabulary has merged: they make re-tokenised text differ from what was
# generated, as real vocabularies do.
_HALF_CHARACTERS = (b"\xe2\x82", b"\xf0\x9f", b"\xe6\x97")


def _build() -> tuple[list[bytes], list[WordClass]]:
    tokens: list[bytes] = [name.encode() for name in SPECIAL_TOKENS]
    tokens += [bytes([value]) for value in range(256)]
    classes = [WordClass.NONE] * len(tokens)
    known = set(tokens)

    def add(token: bytes, word_class: WordClass) -> None:
        if token not in known:
            known.add(token)
            tokens.append(token)
            classes.append(word_class)

    for determiner in _DETERMINERS.split():
        for shape, word_class in (
            (determiner, WordClass.DETERMINER),
            (determiner.capitalize(), WordClass.SUBJECT_DETERMINER),
        ):
            add(shape.encode(), word_class)
            add(f" {shape}".encode(), word_class)
    for word_class, words in (*_GENERATED.items(), (WordClass.NONE, _READ_ONLY)):
        for word in words.split():
            for shape in (word, word.capitalize()):
                add(shape.encode(), word_class)
                add(f" {shape}".encode(), word_class)
    for piece in _PIECES.split():
        add(piece.encode(), WordClass.NONE)
    for mark in _PUNCTUATION.split(" "):
        add(mark.encode(), WordClass.NONE)
    for half in _HALF_CHARACTERS:
        add(half, WordClass.NONE)
    add(b"</think>", WordClass.NONE)
    classes[tokens.index(b".")] = WordClass.FULL_STOP
    return tokens, classes


_tokens, _classes = _build()
TOKENS: Final[tuple[bytes, ...]] = tuple(_tokens)
"""The bytes of each token, by id."""
CLASSES: Final[tuple[WordClass, ...]] = tuple(_classes)
"""The word class of each token, by id."""
IDS: Final[dict[bytes, int]] = {token: index for index, token in enumerate(TOKENS)}
"""The id of each token, by its bytes (special marks included)."""
THINK_END: Final = IDS[b"</think>"]
"""Ends the thinking of a model that thinks first. A token of text: completions show it."""
SIZE: Final = len(TOKENS)
LONGEST: Final = max(len(token) for token in TOKENS[FIRST_BYTE:])


def ids_of(word_class: WordClass, *, after_space: bool) -> tuple[int, ...]:
    """The tokens of a class in the shape that fits the place: " word" after a word, "Word" at a line's start."""
    found = []
    for index, (token, token_class) in enumerate(zip(TOKENS, CLASSES, strict=True)):
        if token_class is not word_class or token[:1].isspace() is not after_space:
            continue
        letters = token.strip()
        capital = letters[:1].isupper()
        if capital == (word_class is WordClass.SUBJECT_DETERMINER):
            found.append(index)
    return tuple(found)
