"""Addresses of model servers."""

from __future__ import annotations

import os
import urllib.parse

from memometer.run.prices import is_loopback


def check_address(url: str) -> None:
    """Check the URL of a model server, and let no HTTP client of this process use a proxy for one on this machine.

    Raises:
        ValueError: it is not a URL, or it has a secret, which manifests and error messages would contain.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the API base must be a URL such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query:
        raise ValueError("the API base must not contain a user, password or query; set OPENAI_API_KEY instead.")
    if is_loopback(url):
        for variable in ("no_proxy", "NO_PROXY"):
            hosts = [host for host in os.environ.get(variable, "").split(",") if host]
            if parts.hostname not in hosts:
                os.environ[variable] = ",".join([*hosts, parts.hostname])
