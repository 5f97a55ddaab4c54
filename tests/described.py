"""Requests that are made of an OpenAPI document: of its parameters, its examples and its security schemes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from service import request

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Asked(NamedTuple):
    """One operation of the document."""

    document: dict[str, Any]
    method: str
    path: str
    base: str
    described: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.described["operationId"])

    @property
    def examples(self) -> list[str]:
        """Their names; one that is none where all there is to say is said by the path."""
        parts = [*self.described.get("parameters", []), *self.contents(self.described.get("requestBody", {}))]
        parts += [media for status in self.described["responses"] for media in self.contents(self.answer(status))]
        own = [name for part in parts for name in part.get("examples", {}) if name[:1].islower() or " " in name]
        return list(dict.fromkeys(own)) or [""]

    def contents(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        return list(part.get("content", {}).values())

    def answer(self, status: str | int) -> dict[str, Any]:
        """What is said of the answer with this status."""
        found: dict[str, Any] = self.described["responses"][str(status)]
        return resolved(self.document, found)

    def example(self, name: str, key: str, **values: Any) -> bytes:
        """The request of an example, or without one of `values`; HTTP's own, as bytes."""
        given = {each["name"]: shown(each, name) for each in self.described.get("parameters", [])} | values
        target = re.sub(r"\{([^}]+)\}", lambda match: quote(str(given[match[1]] or "x"), safe=""), self.path)
        query, headers = [], self.keyed(key)
        for parameter in self.described.get("parameters", []):
            value = given[parameter["name"]]
            if value is None:
                continue
            if parameter["in"] == "header":
                headers.append((parameter["name"], str(value)))
            elif parameter["in"] == "query":
                texts = [quote(str(each), safe="") for each in (value if isinstance(value, list) else [value])]
                texts = texts if parameter.get("explode", True) else [",".join(texts)]
                query += [f"{parameter['name']}={text}" for text in texts]
        body = b""
        if self.method not in ("GET", "HEAD"):
            body, media_type = self.body(name, key)
            headers += [("Content-Length", str(len(body)))] + ([("Content-Type", media_type)] if media_type else [])
        target = self.base + target + (f"?{'&'.join(query)}" if query else "")
        return request(target, None, *headers, method=self.method, body=body)

    def body(self, name: str, key: str) -> tuple[bytes, str]:
        for media_type, media in self.described.get("requestBody", {}).get("content", {}).items():
            value = shown(media, name)
            if isinstance(value, dict) and "client_secret" in value:
                value |= {"client_id": key.split("_")[2], "client_secret": key}
                return "&".join(f"{name}={text}" for name, text in value.items()).encode(), media_type
            return json.dumps(value).encode(), media_type
        return b"", ""

    def keyed(self, key: str) -> list[tuple[str, str]]:
        for name in next(iter(self.described.get("security", [])), {}):
            scheme = self.document["components"]["securitySchemes"][name]
            if scheme["type"] == "apiKey":
                return [(scheme["name"], key)]
            if scheme["scheme"] == "bearer":
                return [("Authorization", f"Bearer {key}")]
        return []


def operations(document: dict[str, Any]) -> Iterator[Asked]:
    """All of them, by the base that callers know."""
    for path, at in document["paths"].items():
        server = at.get("servers", document["servers"])[0]
        base = re.sub(r"\{(\w+)\}", lambda match: server["variables"][match[1]]["default"], server["url"])  # noqa: B023
        for method in METHODS:
            if method.lower() in at:
                yield Asked(document, method, path, base.removesuffix("/"), at[method.lower()])


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        found: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part


def shown(part: dict[str, Any], name: str) -> Any:
    return part.get("examples", {}).get(name, {}).get("value")


def is_like(answer: Any, example: Any) -> bool:
    """Whether an answer is what an example shows, in which ellipses stand for what is left out."""
    if isinstance(example, str) and "…" in example:
        parts = (re.escape(part) for part in example.split("…"))
        return isinstance(answer, str) and re.fullmatch(".*".join(parts), answer) is not None
    if isinstance(example, dict) and isinstance(answer, dict):
        named = example.keys() - {"…"}
        whole = named <= answer.keys() if "…" in example else named == answer.keys()
        return whole and all(is_like(answer[name], example[name]) for name in named)
    if isinstance(example, list) and isinstance(answer, list):
        return len(answer) == len(example) and all(map(is_like, answer, example))
    return bool(answer == example) and type(answer) is type(example)
