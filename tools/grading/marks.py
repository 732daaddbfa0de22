"""Which answers lean on what: a static reading of a notebook, executed by itself.

Reads {"cells": [...], "variables": [...]} from standard input and writes, by variable, what its
definition names: parts of the library beyond what the assignments give, automatic differentiation,
and words by which code hides what it names. Python's parser can be made to crash, hence a process.
"""

from __future__ import annotations

import ast
import json
import sys

GIVEN = ("icrl_lib.classroom", "icrl_lib.attention.linear_self_attention", "icrl_lib.checks")
HIDING = ("__import__", "importlib", "eval", "exec", "compile", "globals", "getattr", "vars", "sys")
DIFFERENTIATION = ("autograd", "requires_grad", "requires_grad_", "backward", "jacrev", "jacfwd",
                   "enable_grad", "inference_mode", "grad", "jvp", "vjp", "gradcheck")  # fmt: skip


def marks(cells: list[str], variables: list[str]) -> dict[str, list[str]]:
    """Return by variable what its definition names, directly or through other definitions."""
    imported: dict[str, str] = {}
    defined: dict[str, list[ast.AST]] = {}
    for cell in cells:
        lines = ["pass" if line.lstrip()[:1] in ("%", "!") else line for line in cell.split("\n")]
        try:
            tree = ast.parse("\n".join(lines))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    top = name.name if name.asname else name.name.partition(".")[0]
                    imported[name.asname or top] = top
            elif isinstance(node, ast.ImportFrom):
                for name in node.names:
                    imported[name.asname or name.name] = f"{node.module}.{name.name}"
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            defined.setdefault(part.id, []).append(node)
    return {variable: _named(variable, imported, defined) for variable in variables}


def _named(variable: str, imported: dict[str, str], defined: dict[str, list[ast.AST]]) -> list[str]:
    found = {imported[variable]} if variable in imported else set()
    seen, todo = {variable}, list(defined.get(variable, []))
    while todo:
        for node in ast.walk(todo.pop()):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
            if isinstance(node, ast.ImportFrom | ast.Import):
                found |= {imported.get(one.asname or one.name, one.name) for one in node.names}
            if name in DIFFERENTIATION:
                found.add("automatic differentiation")
            if isinstance(node, ast.Name):
                if name in HIDING:
                    found.add(f"{name} hides what it names")
                if name in imported:
                    found.add(imported[name])
                if name in defined and name not in seen:
                    seen.add(name)
                    todo += defined[name]
            elif isinstance(node, ast.Attribute) and (full := _dotted(node, imported)):
                found.add(full)
    library = {name for name in found if name.startswith("icrl_lib") and not name.startswith(GIVEN)}
    longest = {n for n in library if not any(o != n and o.startswith(f"{n}.") for o in library)}
    return sorted(longest) + sorted(name for name in found if " " in name)


def _dotted(node: ast.Attribute, imported: dict[str, str]) -> str | None:
    parts: list[str] = []
    inner: ast.AST = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name) and inner.id in imported:
        return ".".join([imported[inner.id], *reversed(parts)])
    return None


if __name__ == "__main__":
    task = json.load(sys.stdin)
    json.dump(marks(task["cells"], task["variables"]), sys.stdout)
