"""Options, each declared in one place, and parts by name."""

from stormlit.registry.options import (
    DEFAULTS,
    Option,
    Role,
    check_values,
    first_line,
    leaves,
    options,
    options_below,
    settings,
    structured,
)
from stormlit.registry.parts import (
    allowed_values,
    build,
    check_class,
    fill,
    kinds,
    names,
    part_class,
    register,
    require_base,
    schema,
)

__all__ = [
    "DEFAULTS",
    "Option",
    "Role",
    "allowed_values",
    "build",
    "check_class",
    "check_values",
    "fill",
    "first_line",
    "kinds",
    "leaves",
    "names",
    "options",
    "options_below",
    "part_class",
    "register",
    "require_base",
    "schema",
    "settings",
    "structured",
]
