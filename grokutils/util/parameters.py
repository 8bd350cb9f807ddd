"""Parameters of a notebook that papermill fills in: a misspelt one stops the run.

papermill puts a cell of its own behind the one that is tagged ``parameters`` and only logs a name that this does not have, so that the
notebook runs on with a default. A notebook that calls `check_parameters` in any later cell ends instead, with the names that there are.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence

__all__ = ["check_parameters"]

# How the cell begins that papermill puts in.
_INJECTED = "# Parameters"


def check_parameters(cells: Sequence[str] | None = None) -> None:
    """Raise if papermill has set a name that the notebook's cell of parameters does not have.

    >>> check_parameters(["wd = 0.0", "# Parameters\\nwd = 0.01\\n", "train(wd)"])
    >>> check_parameters(["wd = 0.0  # weight decay", "# Parameters\\nweight_decay = 0.01\\n"])
    Traceback (most recent call last):
        ...
    ValueError: unknown parameter weight_decay; this notebook has wd.

    Parameters
    ----------
    cells : sources of the cells that have run, in order; by default those of the running notebook. Outside of one, nothing is checked.

    Raises
    ------
    ValueError : an unknown parameter.
    """
    if cells is None:
        from IPython import get_ipython

        shell = get_ipython()
        cells = [] if shell is None else list(shell.user_ns.get("In", ()))
    for before, cell in zip(cells, cells[1:], strict=False):
        if not cell.startswith(_INJECTED):
            continue
        known, given = _assigned(before), _assigned(cell)
        if unknown := [name for name in given if name not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"unknown parameter {', '.join(unknown)}{hint}; this notebook has {', '.join(known)}.")


def _assigned(source: str) -> list[str]:
    """Names that a cell sets at its top level."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic of IPython
        return []
    targets = [t for node in body for t in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])]
    return [target.id for target in targets if isinstance(target, ast.Name)]
