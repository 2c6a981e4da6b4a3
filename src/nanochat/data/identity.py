"""Questions about who the model is, out of a Python module that is read and never run.

The module builds its questions and answers from literals: lists of strings, and strings with the names in braces. Only
that much Python is interpreted here; anything else is an error.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

NAME = "nanochat"
MAKER = "the nanochat project"


def identity_conversations(source: str) -> Iterator[dict[str, Any]]:
    """Every question with every answer of its group, in which the model is nanochat, made by the nanochat project."""
    (function,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "identity_questions"]
    names: dict[str, Any] = {}
    for statement in function.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                # the module's own name and organisation are replaced by ours
                names[name] = {"name": NAME, "org": MAKER}[name] if name in ("name", "org") else literal(value, names)
            case ast.Expr(value=ast.Call(func=ast.Name(id="generate_conversations"), args=[questions, answers])):
                for question in literal(questions, names):
                    for answer in literal(answers, names):
                        yield _conversation(question, answer)
            case ast.FunctionDef() | ast.Return() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                raise ValueError(f"line {statement.lineno}: {ast.unparse(statement)[:80]} is not a literal")


def literal(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Value of a constant, a list of literals, a string with names in braces, or a name assigned before."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=elements):
            return [literal(element, names) for element in elements]
        case ast.JoinedStr(values=parts):
            return "".join(str(literal(part.value if isinstance(part, ast.FormattedValue) else part, names)) for part in parts)
        case ast.Name(id=name) if name in names:
            return names[name]
    raise ValueError(f"line {node.lineno}: {ast.unparse(node)[:80]} is not a literal")


def _conversation(question: str, answer: str) -> dict[str, Any]:
    answer = answer.replace("a language model", "a small language model")
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
