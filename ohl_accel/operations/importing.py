"""Python files of the user's own, imported by path."""

import importlib.util
import sys
from pathlib import Path

from ohl_accel.errors import UserError, first_line


def import_transforms(file: str) -> None:
    """Run a Python file that registers transforms, once in a process.

    Only what the user of this machine names in a space's YAML file is imported, never what a policy file names.

    Raises:
        UserError: if there is no such file, or it fails.
    """
    path = Path(file).resolve()
    name = f"ohl_accel_imported.{path.as_posix()}"
    if name in sys.modules:
        return
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"import: {file} is not a Python file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"import: {file} failed: {first_line(error)}") from error
