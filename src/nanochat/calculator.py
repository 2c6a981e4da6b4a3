"""The calculator that a model may call between <|python_start|> and <|python_end|>: arithmetic, and counting in a string.

Nothing is executed: the expression is parsed and its tree is evaluated exactly, within bounds, so it is safe in any thread.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_CHARS = 200
MAX_DIGITS = 40  # of a numerator or denominator on the way
DECIMALS = 12  # a result with more is rounded to what a double holds

OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
STRING = re.compile(r"'[^'\\\n]*'|\"[^\"\\\n]*\"")
ARITHMETIC = re.compile(r"[0-9+\-*/%.() ]*")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def calculate(expression: str) -> str | None:
    """Value of `expression` as text ("12*(3+4)" -> "84", "'berry'.count('r')" -> "2"), or None if it is not one."""
    text = expression.strip()
    if not text or len(text) > MAX_CHARS:
        return None
    if not STRING.search(text):
        text = THOUSANDS.sub("", text)
    if not ARITHMETIC.fullmatch(STRING.sub("", text).replace(".count", "")):
        return None
    try:
        value = _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return _text(value)


def _value(node: ast.expr, source: str) -> Fraction:
    """Exact value of a tree. Raises ValueError for anything but arithmetic and counting."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = Fraction(ast.get_source_segment(source, node) or "")  # from the digits: 0.1 is one tenth
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, source) * (-1 if isinstance(node.op, ast.USub) else 1)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        value = Fraction(OPERATORS[type(node.op)](_value(node.left, source), _value(node.right, source)))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "count" and len(node.args) == 1 and not node.keywords:
        value = Fraction(_string(node.func.value).count(_string(node.args[0])))
    else:
        raise ValueError("not arithmetic")
    if max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        raise ValueError("too large")
    return value


def _string(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("not a string")


def _text(value: Fraction) -> str:
    """A whole number without a point; else decimals, exact where they end soon."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**DECIMALS
    if scaled.denominator == 1:
        digits = f"{abs(scaled.numerator):0{DECIMALS + 1}d}"
        return f"{'-' if value < 0 else ''}{digits[:-DECIMALS]}.{digits[-DECIMALS:].rstrip('0')}"
    return str(float(value))
