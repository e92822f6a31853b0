"""The ways to write settings: (section, key, value) in order, as the text of one language."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Pairs = list[tuple[str, str, int]]


def assignments(pairs: Pairs) -> str:
    """Python: `key = value`."""
    return "\n".join([f"{key} = {value}" for _, key, value in pairs])


def calls(pairs: Pairs) -> str:
    """Python: one call for each section, which is its opening: `Trainer(`."""
    return "\n".join([section + ", ".join(_joined(pairs, section, "=")) + ")" for section in _sections(pairs)])


def flags(pairs: Pairs) -> str:
    """Shell: `--key value`."""
    return " ".join([f"--{key} {value}" for _, key, value in pairs])


def overrides(pairs: Pairs) -> str:
    """Shell: `key=value`."""
    return " ".join([f"{key}={value}" for _, key, value in pairs])


def json_object(pairs: Pairs) -> str:
    """JSON, one key on a line."""
    return "{\n" + ",\n".join([f'  "{key}": {value}' for _, key, value in pairs]) + "\n}"


def toml(pairs: Pairs) -> str:
    """TOML, the sections as tables."""
    return "\n\n".join([f"[{section}]\n" + "\n".join(_joined(pairs, section, " = ")) for section in _sections(pairs)])


def yaml(pairs: Pairs) -> str:
    """YAML. A section is a mapping; a dotted one lies inside the section before it."""
    lines = []
    for section in _sections(pairs):
        names = section.split(".") if section else []
        if names:
            lines.append("  " * (len(names) - 1) + f"{names[-1]}:")
        indent = "  " * len(names)
        lines.extend([indent + line for line in _joined(pairs, section, ": ")])
    return "\n".join(lines)


def _sections(pairs: Pairs) -> list[str]:
    """The sections, in the order that they first come in."""
    found: list[str] = []
    for section, _, _ in pairs:
        if section not in found:
            found.append(section)
    return found


def _joined(pairs: Pairs, section: str, between: str) -> list[str]:
    """The keys and values of one section."""
    return [f"{key}{between}{value}" for of, key, value in pairs if of == section]
