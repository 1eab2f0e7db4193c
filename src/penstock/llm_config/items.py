"""Options that are a dict to Ray's users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from penstock.config import Options, default_of


class Items(Options, kw_only=True):
    """Options that are a dict to Ray's users: its fields are items, too.

    A field that is None is missing; `in` and iteration have those that differ from their defaults.
    They equal a dict that has those, and others at their defaults.
    """

    def __getitem__(self, name: str) -> Any:
        value = getattr(self, name) if name in self.__struct_fields__ else None
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return super().__eq__(other)
        names = other.keys()
        return names <= set(self.__struct_fields__) and all(
            getattr(self, name) == other.get(name) for name in {*names, *self.keys()}
        )

    def __ne__(self, other: object) -> bool:  # msgspec's own would not ask `__eq__`
        return not self == other

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self}

    def copy(self) -> dict[str, Any]:
        """The items as a dict."""
        return dict(self)

    def keys(self) -> list[str]:
        return [name for name in self._given() if getattr(self, name) is not None]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        part = next(one for one in msgspec.structs.fields(self) if one.name == name)
        setattr(self, name, default_of(part))

    def pop(self, name: str, *default: Any) -> Any:
        """What the field has, which is its default from then on. Raises `KeyError` as a dict's."""
        if name not in self and default:
            return default[0]
        value = getattr(self, name, None)
        del self[name]
        return value

    def setdefault(self, name: str, default: Any = None) -> Any:
        if self.get(name) is None:
            setattr(self, name, default)
        return getattr(self, name)

    def update(self, other: Any = (), **more: Any) -> None:
        self._assign({**dict(other), **more})
