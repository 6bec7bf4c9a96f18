"""Options made from the settings of the methods, see `geolabel.settings`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from geolabel.methods import METHODS, Use
from geolabel.settings import Setting, option_name, settings_of

from .commands import F, option
from .inputs import NETWORK, WEIGHTS

_KINDS: dict[str | None, Any] = {
    "path": click.Path(),
    "folder": click.Path(file_okay=False, path_type=Path),
    "weights": WEIGHTS,
    "network": NETWORK,
}
"""Types of options by `geolabel.settings.Kind`."""


def setting_option(record: type, name: str, **changes: Any) -> Callable[[F], F]:
    """Create the option of a field.

    Parameters
    ----------
    changes
        Arguments of ``click.option`` that replace those of the field.
    """
    known, field = settings_of(record)[name], _fields(record)[name]
    arguments = {"help": known.help, "metavar": known.metavar} | _type(known, get_args(field.type)[0])
    if _shown(field.default):
        arguments |= {"default": field.default, "show_default": True}
    names = option_name(record, name), name
    return option(*names, group=known.topic, rare=known.rare, **(arguments | changes))


def record_options(record: type) -> Callable[[F], F]:
    """Add an option for each setting of a record."""

    def decorate(command: F) -> F:
        for name in reversed(settings_of(record)):
            command = setting_option(record, name)(command)
        return command

    return decorate


def method_options(use: Use, *, without: Collection[str] = (), only: str | None = None) -> Callable[[F], F]:
    """Add the options of the methods; None stands for the method's own default.

    Parameters
    ----------
    without
        Names of fields to leave out.
    only
        Add only the options of this method.
    """

    def decorate(command: F) -> F:
        for name, owners in reversed(owners_of(use).items()):
            if name not in without and (only is None or only in owners):
                command = _method_option(name, owners)(command)
        return command

    return decorate


def owners_of(use: Use) -> dict[str, dict[str, type]]:
    """Settings of all methods by name, with the records that have them by method."""
    found: dict[str, dict[str, type]] = {}
    for method, known in METHODS.items():
        record = getattr(known, use)
        for name in settings_of(record) if record else ():
            found.setdefault(name, {})[method] = record
    return found


def _method_option(name: str, owners: Mapping[str, type]) -> Callable[[F], F]:
    """An option whose help lists the methods that have it, and their defaults."""
    record = next(iter(owners.values()))
    text = settings_of(record)[name].help
    if list(owners) != [name]:  # --student needs no such list
        text = f"{', '.join(owners)}: {text[:1].lower()}{text[1:]}"
    if "Default:" not in text:
        text += _default_text({method: _in_words(_fields(of)[name].default) for method, of in owners.items()})
    return setting_option(record, name, help=text, default=None, show_default=False)


def _default_text(defaults: Mapping[str, str]) -> str:
    """The default of the first method, and differing ones of others."""
    first = next(iter(defaults.values()))
    others = "".join(f"; {value} with {method}" for method, value in defaults.items() if value != first)
    return f" Default: {first}{others}." if first else ""


def _fields(record: Any) -> dict[str, Field[Any]]:
    return {one.name: one for one in fields(record)}


def _shown(default: Any) -> bool:
    return default is not None and default is not False and default != ()


def _in_words(default: Any) -> str:
    if not _shown(default):
        return ""
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _type(known: Setting, kind: Any) -> dict[str, Any]:
    """Type of an option, and its number of values."""
    if get_origin(kind) is tuple:
        return {"multiple": True}
    if get_origin(kind) in (Union, UnionType):  # optional, or a path as text
        kind = get_args(kind)[0]
    if kind is bool:
        return {} if "/" in (known.flag or "") else {"is_flag": True}
    if known.kind:
        return {"type": _KINDS[known.kind]}
    if get_origin(kind) is Literal:
        return {"type": click.Choice(known.choices or get_args(kind))}
    return {"type": _number(known, kind)} if kind in (int, float) else {}


def _number(known: Setting, kind: type) -> Any:
    low = known.low if known.above is None else known.above
    high = known.high if known.below is None else known.below
    if low is None and high is None:
        return kind
    limited: Any = click.IntRange if kind is int else click.FloatRange
    return limited(low, high, min_open=known.above is not None, max_open=known.below is not None)
