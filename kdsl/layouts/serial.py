"""Formats as canonical JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsl.errors import reading
from kdsl.layouts.codes import code_from_json, code_to_json
from kdsl.layouts.format import Buffer, Field, Format, Level, Part
from kdsl.layouts.groups import groups_from_json, groups_to_json


def to_json(fmt: Format) -> dict[str, Any]:
    """The canonical form of a format."""
    return {
        "name": fmt.name,
        "level": _level(fmt.level),
        "buffers": [
            {"name": b.name, "word": b.word, "pad": b.pad, "parts": [_part(p) for p in b.parts]}
            for b in fmt.buffers
        ],
        "extra": [_field(f) for f in fmt.extra],
    }


@reading("format")
def from_json(value: Mapping[str, Any]) -> Format:
    """The format written by `to_json`; every part is checked as when written by hand."""
    buffers = [
        Buffer(b["name"], b["word"], tuple(map(_read_part, b["parts"])), bool(b["pad"]))
        for b in value["buffers"]
    ]
    extra = tuple(map(_read_field, value["extra"]))
    return Format(str(value["name"]), _read_level(value["level"]), tuple(buffers), extra)


def _level(level: Level | None) -> dict[str, Any] | None:
    if level is None:
        return None
    return {
        "field": _field(level.field),
        "scale": _level(level.scale),
        "zero": _level(level.zero),
        "offset": _level(level.offset),
        "parameters": [_level(p) for p in level.parameters],
    }


def _read_level(value: Mapping[str, Any]) -> Level:
    below = {
        n: None if value[n] is None else _read_level(value[n]) for n in ("scale", "zero", "offset")
    }
    parameters = tuple(map(_read_level, value["parameters"]))
    return Level(_read_field(value["field"]), **below, parameters=parameters)


def _field(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "code": code_to_json(field.code),
        "groups": groups_to_json(field.groups),
        "fit": field.fit,
    }


def _read_field(value: Mapping[str, Any]) -> Field:
    code, groups = code_from_json(value["code"]), groups_from_json(value["groups"])
    return Field(value["name"], code, groups, value["fit"])


def _part(part: Part) -> dict[str, Any]:
    return {
        "field": part.field,
        "pattern": part.pattern,
        "bits": part.bits and list(part.bits),
        "columns": part.columns and list(part.columns),
        "pad": list(part.pad),
        "trits": part.trits,
    }


def _read_part(value: Mapping[str, Any]) -> Part:
    low_high, columns, (rows, cols) = value["bits"], value["columns"], value["pad"]
    return Part(
        str(value["field"]),
        str(value["pattern"]),
        low_high and (int(low_high[0]), int(low_high[1])),
        columns and (int(columns[0]), int(columns[1]), int(columns[2])),
        (int(rows), int(cols)),
        int(value["trits"]),
    )
