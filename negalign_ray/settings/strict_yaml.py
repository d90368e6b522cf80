"""YAML for settings: plain data only, and every surprise of YAML refused with its line."""

from typing import Any

import yaml

from negalign_ray.errors import ConfigError


class _Refused(Exception):  # it never leaves this file
    def __init__(self, problem: str, *, line: int):
        super().__init__(problem)
        self.line = line


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without tags, anchors, aliases, repeated keys and keys that are no text."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or (isinstance(event, yaml.NodeEvent) and event.anchor):
            raise _Refused("anchors (&, *) are not read; write it out", line=line)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _Refused(f"the tag {event.tag} is not read; write plain text, numbers, lists and sections", line=line)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise _Refused(f"the key {key!r} is not a name", line=line)
            if key in seen:
                raise _Refused(f"the key {key!r} stands twice in one section; keep one", line=line)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, *, where: str) -> Any:
    """Plain data from YAML text. Raises ConfigError that starts with `where` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader, made stricter
    except _Refused as refused:
        raise ConfigError(f"{where}:{refused.line}: {refused}.") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        remedy = "; indent with spaces, not with tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{where}{line}: {error.problem or error.context}{remedy}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: this is not YAML ({str(error).splitlines()[0]}).") from None
