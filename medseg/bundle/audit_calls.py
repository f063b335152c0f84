"""Constructs of expressions that are harmless with certain arguments only: what each may be given, and why not more.

Functions that merely compute stand in the lists of :mod:`medseg.bundle.allowlist`, whatever they are called with. Those
here read files, the environment or the network's peers, so that their arguments are judged; none may be handed on.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Mapping

RANKS = frozenset({"LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"})
"""What torchrun tells a process about its place among the others. The rest of the environment can hold secrets."""

_CUDNN = frozenset({"torch.backends.cudnn", "torch.backends.cuda.matmul"})
_CUDNN_SWITCHES = frozenset({"benchmark", "deterministic", "enabled", "allow_tf32"})
_UNPICKLES = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_TABLE = "pandas.read_csv"
_COLUMN = re.compile(r"[A-Za-z]+[0-9]\w*", re.ASCII)
_TABLE_FILE = re.compile(r"(?!.*\.\.)(\w[\w.-]*/)*\w[\w.-]*\.(csv|tsv)", re.ASCII)
_MOST_STARS = 4
_IMAGE_MODES = frozenset({"1", "L", "RGB", "RGBA", "I", "F"})
_ROW_OPTIONS = frozenset({"sep", "index_col", "usecols", "nrows", "skiprows"})


def is_switch(node: ast.Call, roots: Mapping[str, str]) -> bool:
    """Whether a call is the one use of setattr that is allowed: a switch of cuDNN or of TF32.

    ``roots``: Names that are bound to modules.
    """
    if not (
        isinstance(node.func, ast.Name) and node.func.id == "setattr" and len(node.args) == 3 and not node.keywords
    ):
        return False
    where, what, value = node.args
    first, _, rest = ast.unparse(where).partition(".")
    return (
        f"{roots.get(first)}.{rest}" in _CUDNN
        and isinstance(what, ast.Constant)
        and what.value in _CUDNN_SWITCHES
        and isinstance(value, ast.Constant)
        and isinstance(value.value, bool)
    )


def is_rank(node: ast.AST) -> bool:
    """Whether a key of ``os.environ`` is the literal name of one of :data:`RANKS`."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in RANKS


def table_of(node: ast.AST, dotted: Callable[[ast.AST], str | None]) -> ast.Call | None:
    """The call of ``pd.read_csv`` of which ``node`` takes one column, as ``.t2`` or ``['image']``, else None.

    No attribute of a pandas table holds a digit, so that a name with one can only be a column. A whole table is never
    handed out: it has methods that write files, and an ``eval`` of its own. ``dotted``: The module path of a name, if
    it has one.
    """
    if isinstance(node, ast.Attribute):
        column = _COLUMN.fullmatch(node.attr) is not None
    elif isinstance(node, ast.Subscript):
        column = isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
    else:
        return None
    call = node.value
    return call if column and isinstance(call, ast.Call) and dotted(call.func) == _TABLE else None


def is_conversion(node: ast.Call) -> bool:
    """Whether a call is ``image.convert('RGB')``, or into another of Pillow's plain modes."""
    if not (isinstance(node.func, ast.Attribute) and node.func.attr == "convert" and len(node.args) == 1):
        return False
    mode = node.args[0]
    return not node.keywords and isinstance(mode, ast.Constant) and mode.value in _IMAGE_MODES


def _literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _load(node: ast.Call) -> str | None:
    """Tensors alone are torch's default, as long as the environment does not take it back."""
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    only = given.get("weights_only")
    default = "weights_only" not in given and os.environ.get(_UNPICKLES, "0").lower() in ("", "0", "false", "n", "no")
    if not (default or (isinstance(only, ast.Constant) and only.value is True)):
        return "torch.load is called without weights_only=True"
    if len(node.args) != 1 or not given.keys() <= {"map_location", "weights_only", "mmap"}:
        return "torch.load may only name its file, map_location, mmap and weights_only=True"
    return None


def _process_group(node: ast.Call) -> str | None:
    given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "backend")]
    plain = len(given) == 1 == len(node.args) + len(node.keywords) and isinstance(given[0], ast.Constant)
    return None if plain else "init_process_group may only name its backend"


def _environment(node: ast.Call) -> str | None:
    rank = bool(node.args) and is_rank(node.args[0])
    if rank and not node.keywords and all(map(_literal, node.args[1:])):
        return None
    return f"the environment may only be asked for {', '.join(sorted(RANKS))}, by its literal name"


def _listing(node: ast.Call) -> str | None:
    """A pattern looks as deep as it has parts; a recursive one, or one of many stars, goes through a whole system."""
    if node.keywords or len(node.args) != 1:
        return "a listing of files may only name its pattern"
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if (stars := sum(text.count("*") for text in texts)) > _MOST_STARS:
        return f"a listing of files has {stars} stars in its pattern, expected at most {_MOST_STARS}"
    return None


def _message(node: ast.Call) -> str | None:
    """With values beside it, a message is a format, whose widths can fill all memory."""
    return "a log call may only give its message" if node.keywords or len(node.args) != 1 else None


def _is_letter(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) == 1


def _partial(node: ast.Call) -> str | None:
    """The function is judged where it is handed on, and each keyword as that of any call."""
    named = len(node.args) == 1 and re.fullmatch(r"[\w.]+", ast.unparse(node.args[0])) is not None
    if named and all(_literal(keyword.value) for keyword in node.keywords):
        return None
    return "partial may only fix keywords of one function, which it names, to literals"


def judge_table(node: ast.Call) -> str | None:
    """Why a call of ``pd.read_csv`` is refused, or None; one row of names, so that a column is no table again."""
    path = node.args[0] if len(node.args) == 1 else None
    # an address can be put together of texts without ://, and a separator of several letters is a regular expression
    texts = [part.value for part in ast.walk(path) if isinstance(part, ast.Constant)] if path else []
    local = not any(":" in str(text) for text in texts)
    plain = all(
        keyword.arg in _ROW_OPTIONS and _literal(keyword.value) and (keyword.arg != "sep" or _is_letter(keyword.value))
        for keyword in node.keywords
    )
    if path and plain and local and _names_a_table(path):
        return None
    return f"{_TABLE} may only name a local file that ends in .csv, and {', '.join(sorted(_ROW_OPTIONS))} as literals"


def _names_a_table(node: ast.AST) -> bool:
    """Whether a path is sure to end in ``.csv``: other files hold what is no list of cases."""
    match node:
        case ast.Constant(value=str() as name):
            return _TABLE_FILE.fullmatch(name) is not None
        case ast.BinOp(op=ast.Add(), right=ast.Constant(value=str() as name)):
            return _TABLE_FILE.fullmatch(name.removeprefix("/")) is not None
        case ast.Call(func=ast.Attribute(attr="join"), args=[_, *_, last], keywords=[]):
            return _names_a_table(last)
    return False


CALLS: dict[str, Callable[[ast.Call], str | None]] = {
    "torch.load": _load,
    "torch.distributed.init_process_group": _process_group,
    "os.makedirs": lambda _: None,  # an empty folder does no harm
    "os.getenv": _environment,
    "os.environ.get": _environment,
    "functools.partial": _partial,
    "glob.glob": _listing,
    "glob.iglob": _listing,
    **{f"logging.{level}": _message for level in ("debug", "info", "warning", "error")},
    _TABLE: lambda _: f"{_TABLE} may only be asked for one column, as in pd.read_csv(path)['image']",
}
"""Functions that may be called, with certain arguments, but not handed on; the reason for a refusal, or None."""
