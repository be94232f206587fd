"""What a chapter defines in its cells, for the scripts and tests that need it: lessons stand in notebooks alone."""

import ast
from types import SimpleNamespace

import nbformat

from gloss_utils.paths import PROJECT_ROOT


def bound_names(statement: ast.stmt) -> set[str]:
    """Names that a statement of a cell binds: a function, a class, or the targets of an assignment."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def lesson(stem: str, *names: str, **given) -> SimpleNamespace:
    """Run what binds these names in a chapter's cells, with the imports that it needs, and nothing else.

    Args:
        given: values of other names that these statements use, such as a parameter of the chapter.

    Raises:
        ValueError: the chapter binds no such name.
    """
    notebook = nbformat.read(PROJECT_ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    statements = [statement for cell in cells for statement in ast.parse(cell.source).body]
    kept = [statement for statement in statements if bound_names(statement) & set(names)]
    if missing := set(names).difference(*map(bound_names, kept)):
        raise ValueError(f"chapter {stem} has no {', '.join(sorted(missing))}: its cells were renamed")
    used = {node.id for statement in kept for node in ast.walk(statement) if isinstance(node, ast.Name)}
    imports = [statement for statement in statements if isinstance(statement, ast.Import | ast.ImportFrom)]
    for statement in imports:
        statement.names = [alias for alias in statement.names if (alias.asname or alias.name) in used]
    body = [statement for statement in imports if statement.names] + kept
    namespace = dict(given)
    exec(compile(ast.Module(body, []), stem, "exec"), namespace)
    return SimpleNamespace(**{name: namespace[name] for name in names})
