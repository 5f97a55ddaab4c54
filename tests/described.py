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
        """Their names."""
        parts = [*self.described.get("parameters", []), *self.contents(self.described.get("requestBody", {}))]
        parts += [media for status in self.described["responses"] if status < "300" for media in self.told(status)]
        return list(dict.fromkeys(name for part in parts for name in part.get("examples", {}))) or [""]

    def told(self, status: str) -> list[dict[str, Any]]:
        return self.contents(self.answer(status))

    def contents(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        return list(part.get("content", {}).values())

    def answer(self, status: str | int) -> dict[str, Any]:
        """What is said of the answer with this status."""
        found: dict[str, Any] = self.described["responses"][str(status)]
        return resolved(self.document, found)

    def example(self, name: str, key: str, **values: Any) -> bytes:
        """The request of an example, with other `values` of parameters where they are given, as bytes."""
        target, headers, body = self.parts(name, key, **values)
        if self.method not in ("GET", "HEAD"):
            headers.append(("Content-Length", str(len(body.encode()))))
        return request(target, None, *headers, method=self.method, body=body.encode())

    def parts(self, name: str, key: str, **values: Any) -> tuple[str, list[tuple[str, str]], str]:
        """The target of an example's request, its headers and its body."""
        given = {each["name"]: shown(each, name) for each in self.described.get("parameters", [])} | values
        target = re.sub(r"\{([^}]+)\}", lambda match: escaped(given[match[1]] or "x"), self.base + self.path)
        query, headers = [], self.keyed(key)
        for parameter in self.described.get("parameters", []):
            value = given[parameter["name"]]
            if parameter["in"] == "header" and value is not None:
                headers.append((parameter["name"], str(value)))
            elif parameter["in"] == "query" and value is not None:
                texts = [escaped(each) for each in (value if isinstance(value, list) else [value])]
                texts = texts if parameter.get("explode", True) else [",".join(texts)]
                query += [f"{parameter['name']}={text}" for text in texts]
        body, media_type = self.body(name, key)
        headers += [("Content-Type", media_type)] if media_type else []
        return target + (f"?{'&'.join(query)}" if query else ""), headers, body

    def body(self, name: str, key: str) -> tuple[str, str]:
        """The body of an example, and its type."""
        for media_type, media in self.described.get("requestBody", {}).get("content", {}).items():
            value = shown(media, name)
            if isinstance(value, dict) and "client_secret" in value:
                own = {**value, "client_id": key.split("_")[2], "client_secret": key}
                return "&".join(f"{name}={text}" for name, text in own.items()), media_type
            return json.dumps(value, ensure_ascii=False, separators=(",", ":")), media_type
        return "", ""

    def session(self, name: str) -> str:
        """An example as the docs have it: what a reader types, and what comes back."""
        target, headers, body = self.parts(name, "sk_live_…_…")
        status = min(self.described["responses"])
        answer = self.answer(status)
        told = next((shown(media, name) for media in self.contents(answer)), None)
        words = ["curl", *(["-i"] if status == "204" else [])]
        words += ["-o", "all.ndjson.gz"] if "application/gzip" in answer.get("content", {}) else []
        words += [] if self.method == "GET" or body else ["-X", self.method]
        words += [word for each in headers for word in ("-H", f"'{each[0]}: {each[1]}'")]
        url = f"http://127.0.0.1:8000{target}"
        words += [f"'{url}'" if "?" in url else url, *(["-d", f"'{body}'"] if body else [])]
        lines = ["$ " + " ".join(words).replace("sk_live_…_…", "sk_live_…").replace(quote("…"), "…")]
        if status == "204":
            lines.append("HTTP/1.1 204 No Content")
        elif isinstance(told, str):
            lines.append(told)
        elif told is not None:
            lines.append(json.dumps(told, ensure_ascii=False, separators=(",", ":")).replace('"…":"…"', "…"))
        return "\n".join(lines)

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


def escaped(value: Any) -> str:
    return quote(str(value), safe="@")


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
        return isinstance(answer, str) and re.fullmatch(".*".join(parts), answer, re.DOTALL) is not None
    if isinstance(example, dict) and isinstance(answer, dict):
        named = example.keys() - {"…"}
        whole = named <= answer.keys() if "…" in example else named == answer.keys()
        return whole and all(is_like(answer[name], example[name]) for name in named)
    if isinstance(example, list) and isinstance(answer, list):
        return len(answer) == len(example) and all(map(is_like, answer, example))
    return bool(answer == example) and type(answer) is type(example)


def sessions(document: dict[str, Any]) -> str:
    """The examples of all operations, as docs/api.md has them."""
    lines: list[str] = []
    tag = ""
    for operation in operations(document):
        if operation.method == "HEAD":
            continue
        if operation.described["tags"][0] != tag:
            tag = operation.described["tags"][0]
            lines += [f"### {tag} by example", ""]
        for name in operation.examples:
            what = f": {name}" if len(operation.examples) > 1 else ""
            lines += [f"{operation.described['summary']}{what}", "```console", operation.session(name), "```", ""]
    return "\n".join(lines).rstrip() + "\n"
