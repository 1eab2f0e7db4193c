"""Turns mappings from users (YAML, JSON, keyword arguments) into typed options;
errors name fields.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, get_args

import msgspec
import msgspec.structs
from msgspec import Meta

from penstock import lazy
from penstock.errors import ConfigError, nearest
from penstock.parsing import decode_json, load_yaml, read_yaml

T = TypeVar("T", bound=msgspec.Struct)

MOST_WHOLE = 2**62
"""Beyond it databases and engines cannot hold a number."""
MOST_SECONDS = 1e10
"""About 317 years. Beyond it times in nanoseconds, and dates, cannot be computed."""

# The numbers that options are
Count = Annotated[int, Meta(ge=0, le=MOST_WHOLE)]
Positive = Annotated[int, Meta(ge=1, le=MOST_WHOLE)]
Seconds = Annotated[float, Meta(gt=0, le=MOST_SECONDS)]
"""The type of a limit, or of an interval that cannot be 0."""
Pause = Annotated[float, Meta(ge=0, le=MOST_SECONDS)]
"""The type of a time in seconds that may be 0: none."""
Rate = Annotated[float, Meta(gt=0, le=1e15)]
"""The type of a rate: requests or tokens in a second or a minute."""

MASK = "***"
_SECRET_WORDS = frozenset(
    (
        *("apikey", "auth", "authorization", "credential", "credentials", "key", "passwd"),
        *("password", "secret", "sig", "signature", "token"),
    )
)
_PLACE = re.compile(r" - at `\$\.([^`]+)`\Z")
"""Where msgspec says that a structure was refused."""
_KEYS = re.compile(r"_keys(?![a-z_])")
"""Fields that hold several secrets. `masked` leaves them: a processor's keys may be columns."""
_SHOWN = 200
"""Characters of a wrong value that an error repeats."""
_URL_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_URL_QUERY = re.compile(r"([?&])([^=&#\s]+)=([^&#\s]+)")


def parse_options(options: type[T], given: Mapping[str, Any], where: str = "") -> T:
    """Build the structure `options` from `given`. `where` is the dotted path of the mapping,
    for error messages.

    Raises `ConfigError` for an unknown key at any depth (with the nearest known one), a wrong type,
    or a value out of bounds.
    """
    given = {name: _as_mapping(value) for name, value in given.items()}
    if issubclass(options, Options):
        given = options.read_fields(given, where)
    _check_keys(options, given, where)
    _check_plain(given, where)
    try:
        return _convert(given, options, where)
    except msgspec.ValidationError:
        from penstock.validation import loosened, mismatch  # imported only for an error

        if issubclass(options, Options):
            given = loosened(options, given)
            with contextlib.suppress(msgspec.ValidationError):
                return _convert(given, options, where)
        place, why, value, choices = mismatch(options, given)
        field = _dotted_path(where, place)
        if choices and isinstance(value, str):
            raise ConfigError(
                f"there is no {_shown(value, place)}",
                field=field,
                value=value,
                hint=nearest(value, choices),
            ) from None
        raise ConfigError(f"{why}, got {_shown(value, place)}", field=field, value=value) from None


def _shown(value: Any, place: str) -> str:
    """What an error says of a value at the path `place`: its beginning, and nothing of a secret."""
    if value is not None and (tells_a_secret(place) or _KEYS.search(place)):
        return repr(MASK)
    text = repr(masked(value, place))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _convert(given: Mapping[str, Any], options: type[T], where: str) -> T:
    """Raises `ConfigError` for a check of ours, `msgspec.ValidationError` for a wrong type."""
    try:
        return msgspec.convert(given, options, strict=True)
    except msgspec.ValidationError as error:
        ours = error.__cause__
        if not isinstance(ours, ConfigError):  # it is a ValueError
            raise
        if place := _PLACE.search(str(error)):
            _put_inside(ours, place[1], where)
        raise ours from None


def _put_inside(error: ConfigError, place: str, where: str) -> None:
    """Complete the field of an error of a structure that lies at `place`. Some name it whole."""
    if error.field and not f"{error.field}.".startswith(f"{place}."):
        inside = _dotted_path(where, place)
        error.args = (f"{inside}.{error}",)
        error.field = f"{inside}.{error.field}"


def _check_plain(value: Any, place: str) -> None:
    """Raise `ConfigError` for text that is no Unicode, and for a number that is not finite."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            why = f"is no Unicode text at character {error.start + 1}"
            raise ConfigError(why, field=place) from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"must be a finite number, not {value}", field=place)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_plain(inner, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_plain(inner, f"{place}[{number}]")


def _as_mapping(value: Any) -> Any:
    """An option object of another library, such as Ray Serve's `AutoscalingConfig`, as a mapping of
    its explicitly set fields.
    """
    if isinstance(value, dict):
        return {name: _as_mapping(inner) for name, inner in value.items()}
    if hasattr(value, "model_dump") and not isinstance(value, (type, msgspec.Struct)):
        given = value.model_dump(exclude_unset=True)
        # A constant tells such classes apart, and counts as not set.
        if "kind" in getattr(type(value), "model_fields", ()):
            given.setdefault("kind", value.kind)
        return given
    return value


class _Checked(msgspec.StructMeta):
    """Lets a call of the class parse its keyword arguments as `parse_options` parses a file's
    mapping, nested mappings included.
    """

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **how: Any
    ) -> Any:
        for field, value in namespace.items():
            if type(value).__name__ == "FieldInfo":
                raise ConfigError(
                    "has pydantic's Field, which would be its value: write the default itself, or"
                    " msgspec.field(default_factory=…)",
                    field=f"{name}.{field}",
                )
        return super().__new__(mcls, name, bases, namespace, **how)

    def __call__(cls, **given: Any) -> Any:
        return parse_options(cast(type[msgspec.Struct], cls), given)


class Options(msgspec.Struct, kw_only=True, metaclass=_Checked):
    """Base of options that users write, in Python or in a file. A wrong or unknown
    option raises `ConfigError`. A number may be a text ("64"), as a variable of the environment
    is; so may true and false.

    A field may be assigned: the whole is checked again, and a wrong value changes nothing.
    `model_copy`, `model_dump`, `model_validate`, these two with JSON, `parse_yaml` and `from_file`
    are those of the Pydantic models that Ray's users have; a field at its default counts as not
    set.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        self._assign({name: value})

    def _assign(self, changes: Mapping[str, Any]) -> None:
        """Set fields: all of them, or none if one is wrong. Raises `ConfigError`."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        checked = parse_options(type(self), {**fields, **changes})
        for name, old in fields.items():
            new = getattr(checked, name)
            if name in changes or new != old:
                msgspec.structs.force_setattr(self, name, new)

    def __iter__(self) -> Iterator[Any]:
        """The fields as pairs of name and value, for `dict()`."""
        return iter([(name, getattr(self, name)) for name in self.__struct_fields__])

    def __repr__(self) -> str:
        """Only fields that differ from their defaults, with secrets masked."""
        shown = [f"{name}={masked(getattr(self, name), name)!r}" for name in self._given()]
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def read_fields(cls, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The fields as they are parsed, of those that a user gave; a class may read more forms."""
        return dict(given)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """A field of a user's own Pydantic model may hold such options, or a mapping of them."""
        from pydantic_core import core_schema as schema

        written = schema.plain_serializer_function_ser_schema(cls.model_dump)
        return schema.no_info_plain_validator_function(cls.model_validate, serialization=written)

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """An instance as it is, or one made of a mapping. Raises `ConfigError`."""
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping):
            raise ConfigError(f"{cls.__name__} is made of a mapping, not of {type(obj).__name__}")
        return cls(**obj)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes) -> Self:
        """As `model_validate`, of JSON. Raises `ConfigError`."""
        try:
            content = decode_json(json_data)
        except ValueError as error:
            raise ConfigError(f"not valid JSON: {error}") from None
        return cls.model_validate(content)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a YAML file. Raises `ConfigError`."""
        return cls.model_validate(read_yaml(Path(path)))

    @classmethod
    def parse_yaml(cls, file: Any) -> Self:
        """As `from_file`, of an open file or a text. Raises `ConfigError`."""
        yaml = lazy.require("yaml", needed_by="A YAML configuration")
        try:
            content = load_yaml(yaml, file, "the text")
        except yaml.YAMLError as error:
            raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from None
        return cls.model_validate(content)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with `update` in place of its fields; `deep` copies what they hold, too. Raises
        `ConfigError`.
        """
        copied = copy.deepcopy(self) if deep else copy.copy(self)
        if update:
            copied._assign(update)
        return copied

    def model_dump(
        self,
        *,
        mode: Literal["python", "json"] = "python",
        by_alias: bool | None = None,
        include: Collection[str] | None = None,
        exclude: Collection[str] = (),
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
    ) -> dict[str, Any]:
        """The fields as a mapping, nested options too; `include` and `exclude` are names of fields.
        With `mode` "json" a class is its import path; `by_alias` is Pydantic's, and no field has an
        alias. Raises `TypeError` for what JSON lacks.
        """
        names = self._given() if exclude_unset or exclude_defaults else self.__struct_fields__
        how: dict[str, Any] = {
            "exclude_unset": exclude_unset or exclude_defaults,
            "exclude_none": exclude_none,
        }
        found = {
            name: _dumped(value, how)
            for name in names
            if (include is None or name in include)
            and name not in exclude
            and ((value := getattr(self, name)) is not None or not exclude_none)
        }
        return found if mode == "python" else json.loads(json.dumps(found, default=_import_path))

    def model_dump_json(self, *, indent: int | None = None, **how: Any) -> str:
        """`model_dump` as JSON, which `model_validate_json` takes."""
        return json.dumps(self.model_dump(**how), default=_import_path, indent=indent)

    @property
    def model_fields_set(self) -> set[str]:
        """The fields that differ from their defaults."""
        return set(self._given())

    def _given(self) -> list[str]:
        parts = msgspec.structs.fields(self)
        return [part.name for part in parts if getattr(self, part.name) != default_of(part)]


def default_of(part: msgspec.structs.FieldInfo) -> Any:
    """The default value of a field."""
    return part.default_factory() if callable(part.default_factory) else part.default


def _dumped(value: Any, how: dict[str, Any]) -> Any:
    if isinstance(value, Options):
        return value.model_dump(**how)
    if isinstance(value, dict):
        return {name: _dumped(inner, how) for name, inner in value.items()}
    if isinstance(value, list):
        return [_dumped(inner, how) for inner in value]
    return value


def _import_path(value: Any) -> Any:
    """What stands in JSON for a value that it lacks."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, type) and "<" not in value.__qualname__:
        return f"{value.__module__}:{value.__qualname__}"
    raise TypeError(f"JSON has no form for {value!r}")


def masked(value: Any, name: str = "") -> Any:
    """A copy of `value` that is safe to log. It masks texts under the names of secrets, and user,
    password and secret parameters in URLs.
    """
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, name) for item in value]
    if isinstance(value, str):
        if value and tells_a_secret(name):
            return MASK
        return _without_keys(value) if "://" in value else value
    return value


def _without_keys(url: str) -> str:
    return _URL_QUERY.sub(
        lambda part: f"{part[1]}{part[2]}={MASK if tells_a_secret(part[2]) else part[3]}",
        _URL_USER.sub(MASK, url),
    )


def tells_a_secret(name: str) -> bool:
    """Whether a field of this name holds a secret."""
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z]+", name.lower()))


RAYS_LIBRARIES = ("ray.serve.llm.", "ray.data.llm.", "ray.llm.")
"""Beginnings of the modules whose public names have counterparts here."""
_COUNTERPARTS = ("deployment", "ingress", "request_router", "openai_api_models", "callbacks")


def _counterpart(name: str, where: str, path: str) -> str:
    """The module that has this name of Ray's libraries. Raises `ConfigError` if none has it."""
    for module in (f"penstock.serve.{one}" for one in _COUNTERPARTS):
        if name in dir(import_module(module)):
            return module
    raise ConfigError(
        f"{name} is a class of Ray's own, which does not run here",
        field=where,
        value=path,
        hint="docs/from-ray-serve.md lists those that do",
    )


def import_object(path: Any, where: str) -> Any:
    """The object at the import path "package.module:name" (or "package.module.name"); what is no
    text is taken for the object itself.

    A name of Ray's libraries for language models is that of its counterpart here. Raises
    `ConfigError` naming the field `where` if the object is missing. An error inside the module
    itself propagates.
    """
    if not isinstance(path, str):
        return path
    module, separator, name = path.partition(":")
    if not separator:
        module, _, name = path.rpartition(".")
    if not module or not name:
        raise ConfigError(
            "must be an import path such as 'package.module:Name'", field=where, value=path
        )
    if f"{module}.".startswith(RAYS_LIBRARIES):
        module = _counterpart(name, where, path)
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but one of its imports does not
        raise ConfigError(f"there is no module '{error.name}'", field=where, value=path) from None
    except AttributeError:
        raise ConfigError(f"module '{module}' has no '{name}'", field=where, value=path) from None


@cache
def _fields(options: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields by name. Cached: inspecting a type takes a millisecond."""
    return {field.encode_name: field for field in msgspec.structs.fields(options)}


def _check_keys(options: type[msgspec.Struct], given: Mapping[str, Any], where: str) -> None:
    fields = _fields(options)
    for key, value in given.items():
        if key not in fields:
            raise unknown_key(key, fields, field=_dotted_path(where, str(key)), value=value)
        parts = list(_structures(fields[key].type))
        if not parts:
            continue
        path = _dotted_path(where, key)
        inner = [(path, value)]
        if isinstance(value, list | tuple):
            inner = [(f"{path}[{number}]", one) for number, one in enumerate(value)]
        for place, one in inner:
            if isinstance(one, Mapping):
                for part in parts:
                    _check_keys(part, one, place)


def unknown_key(
    key: object, known: Iterable[str], *, field: str, value: object = None
) -> ConfigError:
    """The error for a key that a configuration does not have."""
    hint = nearest(str(key), known)
    return ConfigError(f"unknown key '{key}'", field=field, value=value, hint=hint)


def _structures(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structures that a type is made of, such as `list[Structure] | None`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in get_args(kind):
        yield from _structures(part)


def _dotted_path(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name
