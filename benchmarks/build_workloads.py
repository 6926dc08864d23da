"""Build the workloads that ship with Paceline: paceline/evaluation/workloads/*.jsonl.

    python benchmarks/build_workloads.py [--tokenizer pocket-code]

Code, edits and part of the prose are cut from standard-library files that no pocket model was trained on
(`paceline.training.corpus.held_out_files`); the rest was written for this purpose. Needs the library of
CPython 3.11.7, whose files the shipped workloads quote: with another version other files are held out.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from own_text import JSON_DOCUMENTS, PROSE

from paceline.models.loading import load_tokenizer
from paceline.training.corpus import held_out_files
from paceline.training.edits import heading

TARGET = Path(__file__).resolve().parents[1] / "paceline" / "evaluation" / "workloads"
PSF = "PSF-2.0"
OWN = "Apache-2.0"
#: Prompt sizes in tokens; with 128 new tokens every prompt must fit the pocket models' context of 1024.
CODE_TOKENS, LONGEST = 250, 1024 - 128
REFERENCE_LINES = 40

Record = dict[str, Any]
Counter = Callable[[str], int]

#: Functions to complete: file, qualified name, and the share of the body that the prompt contains.
CODE = [
    ("coroutines.py", "iscoroutine", 0.3),
    ("coroutines.py", "_format_coroutine", 0.4),
    ("bz2.py", "BZ2File.close", 0.3),
    ("bz2.py", "BZ2File.readline", 0.3),
    ("bz2.py", "BZ2File.write", 0.3),
    ("bz2.py", "open", 0.3),
    ("bz2.py", "decompress", 0.3),
    ("cProfile.py", "Profile.snapshot_stats", 0.3),
    ("percolator.py", "Percolator.removefilter", 0.3),
    ("queues.py", "Queue._reset", 0.3),
    ("queues.py", "Queue.get", 0.3),
    ("queues.py", "Queue._start_thread", 0.4),
    ("queues.py", "JoinableQueue.put", 0.3),
    ("py_compile.py", "PyCompileError.__init__", 0.3),
    ("py_compile.py", "main", 0.3),
    ("runpy.py", "_run_module_code", 0.3),
    ("runpy.py", "run_module", 0.4),
    ("sched.py", "scheduler.enterabs", 0.3),
    ("sched.py", "scheduler.queue", 0.3),
    ("socketserver.py", "BaseServer.serve_forever", 0.4),
    ("socketserver.py", "TCPServer.server_bind", 0.3),
    ("socketserver.py", "StreamRequestHandler.setup", 0.3),
    ("tokenize.py", "Untokenizer.add_whitespace", 0.3),
    ("tokenize.py", "_all_string_prefixes", 0.4),
]

#: Functions to edit: file, name, how the heading describes the change, and the change as (pattern, replacement).
EDITS = [
    ("bz2.py", "BZ2File.read1", "`size` is called `count`", [(r"\bsize\b", "count")]),
    ("bz2.py", "BZ2File.readlines", "`size` is called `limit`", [(r"\bsize\b", "limit")]),
    ("bz2.py", "BZ2File.seek", "with type hints", [(r"\(self, offset, whence=", "(self, offset: int, whence: int = ")]),
    ("bz2.py", "compress", "`compresslevel` is called `level`", [(r"\bcompresslevel\b", "level")]),
    ("percolator.py", "Percolator.insertfilterafter", "`after` is called `previous`", [(r"\bafter\b", "previous")]),
    ("percolator.py", "Percolator.__init__", "`text` is called `widget`", [(r"\btext\b", "widget")]),
    ("queues.py", "Queue.__init__", "`maxsize` is called `capacity`", [(r"\bmaxsize\b", "capacity")]),
    ("queues.py", "Queue.put", "`obj` is called `item`", [(r"\bobj\b", "item")]),
    ("queues.py", "SimpleQueue.put", "`obj` is called `item`", [(r"\bobj\b", "item")]),
    ("runpy.py", "_run_code", "with type hints", [(r"\(code, run_globals,", "(code: CodeType, run_globals: dict,")]),
    ("runpy.py", "_get_code_from_file", "`fname` is called `path`", [(r"\bfname\b", "path")]),
    ("runpy.py", "_get_main_module_details", "`main_name` is called `name`", [(r"\bmain_name\b", "name")]),
    (
        "socketserver.py",
        "BaseServer._handle_request_noblock",
        "`client_address` is called `peer`",
        [(r"\bclient_address\b", "peer")],
    ),
    ("socketserver.py", "BaseServer.handle_error", "with type hints", [(r"client_address\)", "client_address: str)")]),
    ("socketserver.py", "TCPServer.shutdown_request", "`request` is called `sock`", [(r"\brequest\b", "sock")]),
    ("tokenize.py", "_get_normal_name", "`enc` is called `name`", [(r"\benc\b", "name")]),
]

#: Docstrings to continue: file, qualified name ("" for the module), and the paragraphs that are left out before.
DOCSTRINGS = [
    ("socketserver.py", "", 2),
    ("socketserver.py", "", 9),
    ("socketserver.py", "BaseServer", 0),
    ("socketserver.py", "BaseRequestHandler", 0),
    ("sched.py", "", 0),
    ("tokenize.py", "", 0),
    ("py_compile.py", "PyCompileError", 0),
]


class Library:
    """Held-out files of this interpreter's standard library, by file name."""

    def __init__(self) -> None:
        self.paths = {path.name: path for path in held_out_files()}
        wanted = {name for name, *_ in [*CODE, *EDITS, *DOCSTRINGS]}
        missing = sorted(wanted - set(self.paths))
        if missing:
            sys.exit(f"error: {', '.join(missing)} are not held out in Python {sys.version.split()[0]}; use 3.11.7")

    def text(self, name: str) -> str:
        """A file's text."""
        return self.paths[name].read_text(encoding="utf-8")

    def source(self, name: str) -> str:
        """Where a quote comes from: version, path and the file's hash, which decides that it is held out."""
        path = self.paths[name]
        inside = path.as_posix().rsplit("/python3.11/", 1)[-1]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return f"CPython {sys.version.split()[0]}, Lib/{inside}, sha256 {digest}"

    def find(self, name: str, qualified: str) -> ast.AST:
        """The definition of that name (the module for "")."""
        node: Any = ast.parse(self.text(name))
        for part in qualified.split(".") if qualified else ():
            kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            node = next(n for n in node.body if isinstance(n, kinds) and n.name == part)
        return node


def starts(tree: ast.Module) -> list[int]:
    """Lines (from 0) where a prompt may begin: top-level statements and methods."""
    nodes: list[Any] = [*tree.body]
    nodes += [m for n in tree.body if isinstance(n, ast.ClassDef) for m in n.body]
    firsts = [[n, *getattr(n, "decorator_list", [])] for n in nodes]
    return sorted({min(part.lineno for part in parts) - 1 for parts in firsts})


def cut_line(function: Any, share: float) -> int:
    """Last line (from 1) of the prompt: whole statements, at least the signature and docstring."""
    aim = function.lineno + share * (function.end_lineno - function.lineno)
    signature = function.body[0].lineno - 1
    docstring = function.body[0].end_lineno if ast.get_docstring(function) else signature
    return max(docstring, *(n.end_lineno for n in function.body if n.end_lineno <= aim), signature)


def code(library: Library, count: Counter) -> Iterator[Record]:
    """Half a function, with as much of the file before it as fits."""
    for name, qualified, share in CODE:
        text = library.text(name)
        lines, function = text.splitlines(), library.find(name, qualified)
        cut = cut_line(function, share)
        options = [s for s in starts(ast.parse(text)) if s < cut]
        fits = [s for s in options if count("\n".join(lines[s:cut])) <= CODE_TOKENS]
        begin = min(fits) if fits else max(options)
        end = min(function.end_lineno, cut + REFERENCE_LINES)  # type: ignore[attr-defined]
        yield {
            "name": f"{name.removesuffix('.py')}.{qualified}",
            "prompt": "\n".join(lines[begin:cut]),
            "reference": "\n" + "\n".join(lines[cut:end]) + "\n",
            "source": library.source(name),
            "licence": PSF,
        }


def edits(library: Library, count: Counter) -> Iterator[Record]:
    """A function, and the beginning of its second version: the rest is nearly a copy."""
    for name, qualified, change, rules in EDITS:
        function: Any = library.find(name, qualified)
        lines = library.text(name).splitlines()[function.lineno - 1 : function.end_lineno]
        before = textwrap.dedent("\n".join(lines))
        after = before
        for pattern, replacement in rules:
            after = re.sub(pattern, replacement, after)
        if after == before:
            sys.exit(f"error: the edit of {qualified} changes nothing")
        begun = max(2, round(0.25 * len(lines)))
        second = after.splitlines()
        yield {
            "name": f"{name.removesuffix('.py')}.{qualified}",
            "prompt": heading(function.name, before, change) + "\n".join(second[:begun]),
            "reference": "\n" + "\n".join(second[begun:]) + "\n",
            "source": library.source(name),
            "licence": PSF,
        }


def json_records() -> Iterator[Record]:
    """Documents cut in the middle: the structure is known, the values are not."""
    for name, value, style in JSON_DOCUMENTS:
        text = "\n".join(map(json.dumps, value)) if style == "lines" else json.dumps(value, indent=2)
        cut = text.index("\n", int(0.55 * len(text)))
        yield {
            "name": name,
            "prompt": text[:cut],
            "reference": text[cut:] + "\n",
            "source": "written for Paceline",
            "licence": OWN,
        }


def prose(library: Library) -> Iterator[Record]:
    """English text cut after a word."""
    for name, qualified, skip in DOCSTRINGS:
        text = ast.get_docstring(library.find(name, qualified)) or ""  # type: ignore[arg-type]
        text = "\n\n".join(text.split("\n\n")[skip:])[:1100]
        part = f"-{skip}" if skip else ""
        yield {
            "name": f"{name.removesuffix('.py')}{'.' * bool(qualified)}{qualified}{part}",
            **cut_words(text, 0.55),
            "source": library.source(name),
            "licence": PSF,
        }
    for name, text in PROSE:
        yield {"name": name, **cut_words(text, 0.55), "source": "written for Paceline", "licence": OWN}


def cut_words(text: str, share: float) -> Record:
    """Prompt and reference of a text, cut before a space."""
    cut = text.index(" ", int(share * len(text)))
    return {"prompt": text[:cut], "reference": text[cut:]}


def write(category: str, records: Iterator[Record], count: Counter) -> None:
    """One JSON line a prompt, after checking its size."""
    lines, sizes = [], []
    for record in records:
        sizes.append(count(record["prompt"]))
        if not 40 <= sizes[-1] <= LONGEST:
            sys.exit(f"error: {category}/{record['name']} has {sizes[-1]} tokens")
        ordered = {"name": record.pop("name"), "category": category, **record}
        lines.append(json.dumps(ordered, ensure_ascii=False))
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / f"{category}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{category}: {len(lines)} prompts of {min(sizes)} to {max(sizes)} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="pocket-code", help="counts the tokens of a prompt")
    tokenizer = load_tokenizer(parser.parse_args().tokenizer)
    library = Library()

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    write("code", code(library, count), count)
    write("edit", edits(library, count), count)
    write("json", json_records(), count)
    write("prose", prose(library), count)


if __name__ == "__main__":
    main()
