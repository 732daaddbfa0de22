"""Links to other sites. What they lead to is asked only where BOOK_CHECKS_LINKS is set."""

from __future__ import annotations

import concurrent.futures
import http.server
import os
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PLAIN_HTTP = {"incompleteideas.net"}  # has no other
REFUSES_PROGRAMS = {403, 405, 406, 418, 429, 503}  # the page is there; its publisher wants a person
LINK = re.compile(r"\]\((https?:[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)|<(https?:[^>\s]+)>")
FIELD = re.compile(r"^\s*(url|doi)\s*=\s*\{([^}]*)\}", re.MULTILINE)


def texts() -> dict[str, str]:
    """Return everything with links in it, by the file's name."""
    folders = (ROOT, ROOT / "book", ROOT / "book" / "assignments")
    result = {path.name: path.read_text() for folder in folders for path in folder.glob("*.md")}
    for path in (p for folder in folders for p in folder.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        result[path.name] = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    return result


def addresses() -> dict[str, set[str]]:
    """Return the addresses that the book refers to, and the files that do."""
    found: dict[str, set[str]] = {}
    for name, text in texts().items():
        for match in LINK.finditer(text):
            found.setdefault(match[1] or match[2], set()).add(name)
    for kind, value in FIELD.findall((ROOT / "book" / "references.bib").read_text()):
        address = value if kind == "url" else f"https://doi.org/{value}"
        found.setdefault(address, set()).add("references.bib")
    return found


ADDRESSES = addresses()


def own(address: str) -> bool:
    """Say whether an address is the repository's own, which _config.yml sets."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    return repository.removeprefix("https://") in address.replace("colab.research.google.com/", "")


OTHERS = sorted(address for address in ADDRESSES if not own(address))


def test_links_are_found_in_pages_chapters_and_bibliography():
    where = ADDRESSES["https://arxiv.org/abs/2605.05755"]
    assert {"README.md", "05_sarsa_construction.ipynb", "references.bib"} <= where
    assert len(OTHERS) >= 30


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("see [A (2020)](https://a.org/b_(c)) and", "https://a.org/b_(c)"),
        ("[one](https://a.org/x), [two](b.md)", "https://a.org/x"),
        ("at <https://a.org/y>.", "https://a.org/y"),
    ],
)
def test_an_address_ends_where_its_link_ends(text, address):
    assert [match[1] or match[2] for match in LINK.finditer(text)] == [address]


@pytest.mark.parametrize("address", OTHERS)
def test_address_is_well_formed_and_encrypted(address):
    parts = urlsplit(address)
    assert parts.scheme == "https" or parts.hostname in PLAIN_HTTP
    assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc)
    assert not parts.query
    if parts.hostname == "arxiv.org":
        assert re.fullmatch(r"/abs/\d{4}\.\d{4,5}", parts.path)
    if parts.hostname == "doi.org":
        assert re.fullmatch(r"/10\.\d{4,}/\S+", parts.path)


def test_a_link_whose_text_names_a_year_leads_to_one_address():
    """ "Liang and Lai (2026)" is the same paper wherever it stands."""
    leads: dict[str, set[str]] = {}
    for text in texts().values():
        for words, address in re.findall(r"\[([^\]]*\(\d{4}\))\]\((https?:[^)\s]+)\)", text):
            leads.setdefault(" ".join(words.split()), set()).add(address)
    assert {words: found for words, found in leads.items() if len(found) > 1} == {}


def answer(address: str) -> str:
    """Return what is wrong with an address, or nothing."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    problem = ""
    for wait in (0, 5, 30):  # a server that is busy is asked again
        time.sleep(wait)
        try:
            with urllib.request.urlopen(request, timeout=30):
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            return "" if error.code in REFUSES_PROGRAMS else f"{address}: {error.code}"
        except OSError as error:
            problem = f"{address}: {error}"
    return problem


@pytest.mark.skipif("BOOK_CHECKS_LINKS" not in os.environ, reason="BOOK_CHECKS_LINKS is not set")
def test_addresses_lead_somewhere():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [problem for problem in pool.map(answer, OTHERS) if problem] == []


class Site(http.server.BaseHTTPRequestHandler):
    """Answers with the number that the address asks for."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    ("code", "is_broken"), [(200, False), (403, False), (404, True), (410, True)]
)
def test_a_page_that_is_gone_is_noticed(code, is_broken):
    with http.server.HTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/{code}"
        assert answer(address) == (f"{address}: {code}" if is_broken else "")
        thread.join()
