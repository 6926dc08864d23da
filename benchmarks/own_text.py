"""Texts written for the shipped workloads: records to continue as JSON, and plain English."""

from __future__ import annotations

from typing import Any


def _rows(keys: str, *rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    names = keys.split()
    return [dict(zip(names, row, strict=True)) for row in rows]


_STATIONS = _rows(
    "id name latitude longitude temperature wind",
    ("st-01", "Harbour", 53.55, 9.99, 11.4, {"speed": 5.2, "direction": "NW"}),
    ("st-02", "Hill", 53.61, 10.02, 9.8, {"speed": 8.1, "direction": "W"}),
    ("st-03", "Forest", 53.49, 10.11, 10.1, {"speed": 2.4, "direction": "SW"}),
    ("st-04", "Airport", 53.63, 9.98, 10.9, {"speed": 6.7, "direction": "NW"}),
)
_INVOICE = {
    "invoice": "2024-0117",
    "customer": {"name": "Mara Lindqvist", "city": "Uppsala", "country": "SE"},
    "items": _rows(
        "sku title quantity price tax",
        ("BK-100", "Inner tube", 4, 6.5, 0.25),
        ("BK-217", "Brake pads", 2, 14.0, 0.25),
        ("BK-330", "Chain oil", 1, 9.9, 0.25),
        ("BK-412", "Bar tape", 1, 19.0, 0.25),
    ),
    "currency": "EUR",
    "paid": False,
}
_BOOKS = _rows(
    "title author year pages languages",
    ("The Quiet Engine", "Ines Duarte", 1998, 312, ["en", "pt"]),
    ("Salt Roads", "Tomas Berg", 2004, 268, ["en", "sv"]),
    ("A Theory of Bridges", "Wen Li", 2011, 441, ["en", "zh"]),
    ("Letters to a Lighthouse", "Orla Byrne", 2016, 190, ["en", "ga"]),
)
_LOG = _rows(
    "time level service message status",
    ("2024-03-02T10:00:01Z", "INFO", "gateway", "request accepted", 202),
    ("2024-03-02T10:00:01Z", "INFO", "billing", "invoice created", 201),
    ("2024-03-02T10:00:02Z", "WARNING", "gateway", "slow upstream", 200),
    ("2024-03-02T10:00:04Z", "ERROR", "billing", "database timeout", 504),
    ("2024-03-02T10:00:05Z", "INFO", "gateway", "request retried", 202),
    ("2024-03-02T10:00:06Z", "INFO", "billing", "invoice created", 201),
)
_PACKAGE = {
    "name": "route-planner",
    "version": "2.3.1",
    "description": "Plans bicycle routes with little traffic",
    "license": "MIT",
    "scripts": {"build": "tsc -p .", "test": "jest", "lint": "eslint src", "start": "node dist/server.js"},
    "dependencies": {"express": "^4.19.0", "geolib": "^3.3.4", "pino": "^9.1.0", "zod": "^3.23.0"},
    "devDependencies": {"eslint": "^9.3.0", "jest": "^29.7.0", "typescript": "^5.4.5"},
}
_USERS = {
    "page": 1,
    "total": 4,
    "users": _rows(
        "id username email active roles",
        (1, "amara", "amara@example.org", True, ["admin", "editor"]),
        (2, "bruno", "bruno@example.org", True, ["editor"]),
        (3, "chloe", "chloe@example.org", False, ["viewer"]),
        (4, "daniel", "daniel@example.org", True, ["viewer"]),
    ),
}
_MAP = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "properties": {"name": name, "kind": kind},
            "geometry": {"type": "Point", "coordinates": [x, y]},
        }
        for name, kind, x, y in [
            ("Old Mill", "cafe", 4.35, 50.85),
            ("Station North", "station", 4.36, 50.86),
            ("Canal Bridge", "bridge", 4.34, 50.84),
            ("Market Hall", "shop", 4.37, 50.85),
        ]
    ],
}
_RACE = {
    "race": "Spring Classic",
    "distance_km": 187.5,
    "results": _rows(
        "rank rider team time gap",
        (1, "L. Moreau", "Northwind", "4:31:08", 0),
        (2, "K. Adeyemi", "Velo Sud", "4:31:08", 0),
        (3, "P. Novak", "Northwind", "4:31:15", 7),
        (4, "S. Iversen", "Fjord", "4:31:40", 32),
        (5, "G. Rossi", "Velo Sud", "4:32:02", 54),
    ),
}
_SETTINGS = {
    "logging": {"level": "info", "file": "/var/log/app.log", "rotate": True, "keep": 7},
    "database": {"host": "localhost", "port": 5432, "name": "app", "user": "app", "pool": {"min": 2, "max": 10}},
    "cache": {"host": "localhost", "port": 6379, "ttl": 300, "prefix": "app:"},
    "server": {"host": "0.0.0.0", "port": 8080, "workers": 4, "timeout": 30},
}
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "Full name"},
        "email": {"type": "string", "description": "Address for messages"},
        "age": {"type": "integer", "description": "Age in years", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "Free labels"},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}, "zip": {"type": "string"}},
            "required": ["street", "city"],
        },
    },
    "required": ["name", "email"],
}
_TESTS = _rows(
    "test outcome seconds attempts",
    ("tests/test_parse.py::test_empty", "passed", 0.012, 1),
    ("tests/test_parse.py::test_nested", "passed", 0.034, 1),
    ("tests/test_render.py::test_table", "failed", 0.27, 2),
    ("tests/test_render.py::test_list", "passed", 0.045, 1),
    ("tests/test_server.py::test_health", "passed", 0.51, 1),
    ("tests/test_server.py::test_timeout", "skipped", 0.0, 0),
)
_STOCK = {
    "warehouse": "B",
    "bins": {
        f"B-{row}{place}": {"sku": f"PX-{row * 100 + place * 7}", "count": 12 * row - place, "reserved": place}
        for row in (1, 2, 3)
        for place in (1, 2, 3)
    },
}

#: Name, value, and how it is written: one indented document, or a record a line.
JSON_DOCUMENTS: list[tuple[str, Any, str]] = [
    ("stations", {"updated": "2024-05-01T06:00:00Z", "stations": _STATIONS}, "document"),
    ("invoice", _INVOICE, "document"),
    ("books", _BOOKS, "document"),
    ("log", _LOG, "lines"),
    ("package", _PACKAGE, "document"),
    ("users", _USERS, "document"),
    ("map", _MAP, "document"),
    ("race", _RACE, "document"),
    ("settings", _SETTINGS, "document"),
    ("schema", _SCHEMA, "document"),
    ("tests", _TESTS, "lines"),
    ("stock", _STOCK, "document"),
]

PROSE = [
    (
        "readme-install",
        """# Route planner

A small tool that finds quiet bicycle routes between two places. It reads an extract of the map, builds a
graph of roads and paths, and looks for a way that avoids heavy traffic even when it is a little longer.

## Installation

The package needs Python 3.11 or newer. Install it with pip, then download the map of your region. The map is
stored in the cache directory and is used again the next time. If you want to keep several maps, set the
environment variable ROUTES_CACHE to another directory. The tests can be run with pytest; they do not need a
network connection, because a small map of a single village is part of the repository.
""",
    ),
    (
        "readme-usage",
        """## Usage

Start the program with the names of two places. It prints the route as a list of streets, with the distance and
the number of metres that have to be climbed. The option --format changes the output: "text" is meant for people,
"json" for other programs, and "gpx" for navigation devices. The option --avoid may be given several times; each
value is a kind of road that should not be used. When no route can be found, the program exits with status 1 and
writes a message to standard error. When one of the places is not known, it lists the places with similar names
and exits with status 2.
""",
    ),
    (
        "paceline",
        """When cyclists ride in a line, the one at the front works hardest. The others follow in the slipstream and
save up to a third of their effort. After a while the leader moves to the side, slows down a little and joins the
line at its end. So every rider takes a turn at the front, and the group as a whole is much faster than any one
of its members would be alone. The line only works when everybody knows the rules: ride evenly, do not brake
suddenly, point out holes in the road, and tell the others when you are tired.
""",
    ),
    (
        "changelog",
        """Version 2.3.1

This release fixes three errors. The parser no longer fails when a file ends without a newline. The cache is
written to a temporary file first and then renamed, so that a program that is stopped in the middle of writing does
not leave a broken file. The default timeout of the server is now 30 seconds, as the documentation always said.

Version 2.3.0

This release adds a new output format and makes the search about twice as fast. The old format is still supported
but it is deprecated and will be removed in version 3.0. The minimum version of Python is now 3.11.
""",
    ),
    (
        "queue",
        """A queue is a list of items in which the first item that was added is the first one to be removed. It is
useful when one part of a program produces work and another part does it. If the producer is faster than the
consumer, the queue grows; a bounded queue makes the producer wait until there is space again. If the queue is
empty, the consumer waits until an item arrives. When several threads use the same queue, a lock must be held
while an item is added or removed, because otherwise two threads could take the same item.
""",
    ),
]
