"""The user's own code, named in a recipe or a space: `package.module:Name` or `path/to/file.py:Name`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ohl_accel.errors import UserError, did_you_mean, first_line

T = TypeVar("T")

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def find_class(field: str, name: str, built_in: Mapping[str, type[T]], kind: type[T]) -> type[T]:
    """The class that a field of the recipe names: a built-in one, or the user's own.

    Args:
        field: the recipe's field, for messages.
        name: a key of `built_in`, `package.module:Name` or `path/to/file.py:Name`. The code is run.
        built_in: name -> class.
        kind: what the class must be derived from.

    Raises:
        UserError: if there is no such class, or its module cannot be imported.
    """
    if name in built_in:
        return built_in[name]
    where, colon, attribute = name.rpartition(":")
    if not colon:
        known = f"known: {', '.join(built_in)}, or your own as package.module:Name or path/to/file.py:Name"
        hint = did_you_mean(name, built_in)
        raise UserError(
            f"{field}={name}: there is no such {kind.__name__.lower()}; {hint} {known}".replace(";  ", "; ")
        )
    module = import_extension(field, where)
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        own = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, kind)
        ]
        others = ", ".join(key for key in own if key != kind.__name__) or "none"
        raise UserError(
            f"{field}={name}: {where} has no class {attribute} derived from ohl_accel's {kind.__name__}; "
            f"it has: {others}"
        )
    return found


def why_refused(kind: type, options: Mapping[str, Any], own: Collection[str], error: Exception) -> str:
    """Why a class could not be made: an option that it has not, with those that it has, or what the error says.

    Args:
        kind: the class.
        options: what was given to its constructor, from the recipe.
        own: parameters that are none of its options.
        error: of its constructor.
    """
    if not (isinstance(error, TypeError) and "unexpected keyword argument" in str(error)):
        return str(error)
    known: dict[str, None] = {}
    for base in kind.__mro__:
        parameters = (
            inspect.signature(vars(base)["__init__"]).parameters.values() if "__init__" in vars(base) else ()
        )
        known |= {one.name: None for one in parameters if one.kind in _NAMED}
        if parameters and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            break  # nothing is passed on to the next
    known = {name: None for name in known if name not in own}
    for name in options:
        if name not in known:
            others = f"it has: {', '.join(known)}" if known else "it has none"
            return f"there is no option {name}; {did_you_mean(name, known)} {others}".replace(";  ", "; ")
    return str(error)


def import_extension(field: str, where: str) -> ModuleType:
    """Import the user's own module by its dotted name, or from a file, once per process.

    Only what the local user names in a recipe or a space file is imported, never what a policy file names.

    Raises:
        UserError: if it does not exist or fails.
    """
    try:
        if not where.endswith(".py"):
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))
            return importlib.import_module(where)
        path = Path(where).expanduser().resolve()
        name = f"ohl_accel_extension.{path.as_posix()}"  # a file called json.py must not replace the library
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UserError(f"{field}: {where} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{field}: {where} failed: {first_line(error)}") from error
