"""Formula text: a recursive-descent parser that checks arity and types as it reads.

formula  =  number | terminal | primitive "(" formula { "," formula } ")"
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Any

from gpprune.primitives.language import Language
from gpprune.primitives.nodes import MAX_DEPTH, MAX_NODES, FormulaError, Node, quantise
from gpprune.primitives.types import Constant, Profile, Units, ValueType
from gpprune.primitives.weights.lowering import LARGEST

MAX_TEXT = 100_000

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<mark>[(),]))"
)


def read(text: str, language: Language) -> list[Node]:
    """The nodes of formula text, in prefix order; see `parse` for what it raises."""
    try:
        return _Reader(text, language, language.root).read()
    except FormulaError:
        if language.root is Profile and _is(text, language, Units):
            raise FormulaError(
                f"{text.strip()[:60]!r} gives one number a unit, but not how much sparser that "
                f"makes it: write for example spread({text.strip()[:60]}, 0.1)"
            ) from None
        raise


def _is(text: str, language: Language, type_: ValueType) -> bool:
    try:
        _Reader(text, language, type_).read()
    except FormulaError:
        return False
    return True


class _Reader:
    def __init__(self, text: str, language: Language, root: ValueType) -> None:
        if len(text) > MAX_TEXT:
            raise FormulaError(
                f"formula text of {len(text):,} characters is too long: at most {MAX_TEXT:,}"
            )
        self.language = language
        self.root = root
        self.tokens = _tokens(text)
        self.at = 0
        self.nodes: list[Node] = []

    def read(self) -> list[Node]:
        if not self.tokens:
            raise FormulaError("the formula is empty; write for example mul(abs(W), X)")
        self._formula(self.root, 0)
        if self.at < len(self.tokens):
            _, found, where = self.tokens[self.at]
            raise FormulaError(f"{found!r} at character {where + 1} comes after the formula's end")
        return self.nodes

    def _next(self, wanted: str) -> tuple[str, str, int]:
        if self.at == len(self.tokens):
            raise FormulaError(f"the formula ends where {wanted} is missing; close it")
        self.at += 1
        return self.tokens[self.at - 1]

    def _formula(self, wanted: ValueType, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise FormulaError(f"the formula is nested more than {MAX_DEPTH} deep")
        if len(self.nodes) >= MAX_NODES:
            raise FormulaError(f"the formula has more than {MAX_NODES:,} nodes")
        kind, token, where = self._next("an argument")
        if kind == "number":
            value = quantise(float(token))
            if not math.isfinite(value) or abs(value) > LARGEST:
                raise FormulaError(f"the constant {token[:40]} is out of float32's range")
            self._admit(self.language.constant(value), token, Constant, wanted, where)
            return
        node = self.language.node(token, wanted) if kind == "name" else None
        if node is None:
            raise FormulaError(self._unknown(kind, token, where))
        self._admit(node, token, node.ret, wanted, where)
        if node.arity:
            self._arguments(node, token, depth)

    def _admit(
        self, node: Any, token: str, found: ValueType, wanted: ValueType, where: int
    ) -> None:
        if wanted not in found.__mro__:
            raise FormulaError(
                f"{token!r} at character {where + 1} is of type {found.__name__}, "
                f"where {wanted.__name__} is needed"
            )
        self.nodes.append(node)

    def _arguments(self, node: Any, name: str, depth: int) -> None:
        plural = "argument" if node.arity == 1 else "arguments"
        takes = f"{name} takes {node.arity} {plural}"
        for count, wanted in enumerate(node.args):
            _, mark, where = self._next(f"an argument of {name}")
            if mark != ("," if count else "("):
                raise FormulaError(
                    f"{takes}, but after {count} of them comes {mark!r} at character {where + 1}"
                )
            self._formula(wanted, depth + 1)
        _, mark, where = self._next(f"the closing parenthesis of {name}")
        if mark != ")":
            raise FormulaError(f"{takes}, but {mark!r} follows them at character {where + 1}")

    def _unknown(self, kind: str, token: str, where: int) -> str:
        if kind == "mark":
            return f"{token!r} at character {where + 1} stands where a formula is needed"
        close = difflib.get_close_matches(token, self.language.words, 1)
        hint = f"did you mean {close[0]!r}?" if close else "see `gpprune primitives`"
        shown = token if len(token) <= 40 else token[:40] + "..."
        article = "an" if self.language.name[0] in "aeiou" else "a"
        return f"unknown name {shown!r} in {article} {self.language.name} formula; {hint}"


def _tokens(text: str) -> list[tuple[str, str, int]]:
    tokens = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            where = at + len(text[at:]) - len(text[at:].lstrip())
            raise FormulaError(f"{text[where]!r} at character {where + 1} is not formula text")
        kind = str(match.lastgroup)
        tokens.append((kind, match[kind], match.start(kind)))
        at = match.end()
    return tokens
