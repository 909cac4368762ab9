"""Command line and reporting shared by the client suites: one line per check, the first failure ends the run."""

import argparse
import json
import sys
import urllib.error
import urllib.request


def arguments(description, *extra):
    """Parses `--url --model [--api-key] [--bundled]` and the given extra (flag, options) pairs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", required=True, help="base URL of a running server, without /v1")
    parser.add_argument("--model", help="served model name; default: the first one listed")
    parser.add_argument("--api-key", help="key that the server asks for")
    parser.add_argument("--bundled", action="store_true", help="the server runs the bundled model: expect right answers")
    for flag, options in extra:
        parser.add_argument(flag, **options)
    args = parser.parse_args()
    args.url = args.url.rstrip("/")
    if not args.model:
        args.model = call(args, "/v1/models")["data"][0]["id"]
    return args


def call(args, path, body=None):
    """A plain request without any client library; returns the JSON of a successful answer."""
    headers = {"Content-Type": "application/json"}
    if args.api_key:
        headers["Authorization"] = f"Bearer {args.api_key}"
    data = json.dumps(body).encode() if body is not None else None
    try:
        with urllib.request.urlopen(urllib.request.Request(args.url + path, data, headers), timeout=300) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        require(f"{path} answers", False, f"{error.code}: {error.read().decode(errors='replace')}")


def check(name, holds, seen=None):
    """Reports one check; a failed one shows what was seen and ends the program."""
    require(name, holds, seen)
    print(f"ok: {name}", flush=True)


def require(name, holds, seen=None):
    """A condition of the checks themselves: reported only when it does not hold."""
    if not holds:
        print(f"FAILED: {name}" + (f": {seen!r}" if seen is not None else ""), flush=True)
        sys.exit(1)


def equal(name, seen, expected):
    """Checks equality and shows both sides when it fails."""
    check(name, seen == expected, {"seen": seen, "expected": expected})
