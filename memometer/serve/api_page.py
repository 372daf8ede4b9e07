"""The page /docs: the API reference as plain HTML, made from the OpenAPI document without scripts or other servers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
summary{cursor:pointer;padding:.4rem 0}b{display:inline-block;min-width:5rem}pre{background:#f4f4f4;padding:.6rem;
overflow:auto}table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}"""


def page(document: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    title = f"{document['info']['title']} API {document['info']['version']}"
    operations = [
        _operation(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f'<details id="{escape(name)}"><summary>{escape(name)}</summary><pre>{_json(schema)}</pre></details>'
        for name, schema in document.get("components", {}).get("schemas", {}).items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<h1>{escape(title)}</h1><p>The same as JSON: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"]
    parameters = [
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{p['in']}{', required' if p.get('required') else ''}</td>"
        f"<td><code>{_json(p.get('schema', {}))}</code></td></tr>"
        for p in operation.get("parameters", [])
    ]
    if parameters:
        parts.append(f"<table>{''.join(parameters)}</table>")
    body = operation.get("requestBody", {}).get("content", {})
    parts += [f"<p>Body, {escape(kind)}: {_links(about)}</p>" for kind, about in body.items()]
    replies = [
        f"<tr><td>{escape(status)}</td><td>{' '.join(map(_links, reply.get('content', {}).values()))}</td></tr>"
        for status, reply in operation["responses"].items()
    ]
    parts.append(f"<table>{''.join(replies)}</table>")
    summary = f"<b>{method}</b> <code>{escape(path)}</code> {escape(operation.get('summary', ''))}"
    return f"<details><summary>{summary}</summary>{''.join(parts)}</details>"


def _links(about: Mapping[str, Any]) -> str:
    names = sorted(set(_references(about)))
    return " ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names) or "bytes or text"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "$ref" in value:
            yield str(value["$ref"]).rpartition("/")[2]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _json(value: Any) -> str:
    return escape(json.dumps(value, indent=1 if "properties" in value else None, ensure_ascii=False))
