"""Fields of pydantic classes that cannot come back from a read, as far as their schema shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from messagedb_sa._round_trips import makes_anew

# Functions of the application's, which may do by hand what the schema alone would not do.
_VALIDATORS_OF_ITS_OWN = frozenset({"function-before", "function-wrap", "function-plain"})
# What is not stored as a JSON object.
_NEVER_OBJECTS = frozenset({"list", "tuple", "set", "frozenset", "str", "int", "float", "bool", "datetime", "uuid"})
# The keys under which a schema has its inner schemas.
_INNER = (
    "schema",
    "items_schema",
    "keys_schema",
    "values_schema",
    "extras_schema",
    "choices",
    "steps",
    "lax_schema",
    "json_schema",
)


def lossy_fields(core_schema: Any) -> Iterator[str]:
    """For each field of the class, or of a class within it, that cannot come back: what is wrong, with its name."""
    definitions = core_schema.get("definitions", ()) if core_schema["type"] == "definitions" else ()
    yield from _Walk({each["ref"]: each for each in definitions}).through(core_schema, "", {}, False)


class _Walk:
    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._seen: set[str] = set()

    def through(self, node: Any, path: str, config: dict[str, Any], is_by_hand: bool) -> Iterator[str]:
        """``path`` leads to the node, ``config`` is that of its class; ``is_by_hand``: a validator sees its data."""
        if isinstance(node, (list, tuple)):
            for each in node:
                yield from self.through(each, path, config, is_by_hand)
            return
        if not isinstance(node, Mapping):
            return
        kind, serializer = node.get("type"), node.get("serialization") or {}
        if "function" in serializer:
            if _masks(serializer["function"]):
                yield f"its field {path} must not be a secret, which is stored as asterisks, without a field_serializer"
            # Pydantic itself wraps sequences.
            if serializer["type"] != "function-wrap" or not _is_pydantics(serializer["function"]):
                return
        if kind == "definition-ref":
            if node["schema_ref"] not in self._seen:
                self._seen.add(node["schema_ref"])
                yield from self.through(self._definitions.get(node["schema_ref"]), path, config, is_by_hand)
            return
        if kind in ("model", "dataclass", "typed-dict"):
            config = node.get("config") or {}
            yield from _lost_beside_fields(node, path, config)
        is_by_hand = is_by_hand or kind in _VALIDATORS_OF_ITS_OWN
        for key in _INNER:
            yield from self.through(_each(node.get(key)), path, config, is_by_hand)
        if kind in ("model-fields", "dataclass-args", "typed-dict"):
            for name, field in _named(node["fields"]):
                at = f"{path}.{name}" if path else name
                yield from _lost_field(field, name, at, config, is_by_hand)
                yield from self.through(field["schema"], at, config, is_by_hand)


def _each(inner: Any) -> Any:
    """The schemas themselves, also of a tagged union's choices, which are a dict of them."""
    return list(inner.values()) if isinstance(inner, dict) and not isinstance(inner.get("type"), str) else inner


def _named(fields: Any) -> Iterable[tuple[str, Any]]:
    return fields.items() if isinstance(fields, dict) else [(each["name"], each) for each in fields]


def _masks(serializer: Any) -> bool:
    """Whether this is what pydantic's SecretStr, SecretBytes and Secret have of themselves."""
    name = getattr(serializer, "__qualname__", "").lower()
    return _is_pydantics(serializer) and "serialize" in name and "secret" in name


def _is_pydantics(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("pydantic.")


def _lost_beside_fields(node: Mapping[str, Any], path: str, config: dict[str, Any]) -> Iterator[str]:
    if not path and node.get("root_model") and (kind := node["schema"]["type"]) in _NEVER_OBJECTS:
        yield f"must be stored as an object, not as a {kind}"
    for name, private in getattr(node.get("cls"), "__private_attributes__", {}).items():
        if private.default_factory is not None and makes_anew(private.default_factory):
            at = f"{path}.{name}" if path else name
            yield f"its private attribute {at} must not have a factory, whose value is new at each read"
    if node["type"] == "dataclass" and config.get("extra_fields_behavior") == "allow":
        yield f"its class {node['cls'].__name__} must not be a dataclass with extra='allow', which is not stored"


def _lost_field(field: dict[str, Any], name: str, at: str, config: dict[str, Any], is_by_hand: bool) -> Iterator[str]:
    if field.get("serialization_exclude"):
        yield f"its field {at} must not have exclude=True, with which it is not stored"
    if field.get("init_only"):
        yield f"its field {at} must not be an InitVar, which is not stored"
    factory = field["schema"].get("default_factory")
    # With the other fields' data, it may derive the value from them.
    derives = field["schema"].get("default_factory_takes_data")
    if field.get("init") is False and factory is not None and makes_anew(factory) and not derives:
        yield f"its field {at} must not have init=False and a factory, whose value is new at each read"
    stored_as = field.get("serialization_alias") or name
    if not is_by_hand and stored_as not in (read_as := _names_in_data(field, name, config)):
        yield f"its field {at} must not be stored as {stored_as!r} and read as {' or '.join(map(repr, read_as))}"


def _names_in_data(field: dict[str, Any], name: str, config: dict[str, Any]) -> list[str]:
    """The keys under which a read finds the field, with dots in those that lead into other values."""
    alias = field.get("validation_alias")
    if alias is None:
        return [name]
    paths = [[alias]] if isinstance(alias, str) else alias if isinstance(alias[0], list) else [alias]
    names = [path[0] if len(path) == 1 else ".".join(map(str, path)) for path in paths]
    if config.get("validate_by_alias") is False:
        names = []
    if config.get("validate_by_name") or config.get("populate_by_name"):
        names.append(name)
    return names
