"""The certificate's two forms: the object keeps its shape and shows tampering, the page can be read."""

from __future__ import annotations

import copy
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.measure.certificate import certificate_digest, certificate_json, certificate_page
from draftsmith.measure.certify import Certificate, CertifyPlan, Divergence, Identity
from draftsmith.measure.distribution import DistributionResult
from draftsmith.measure.document import Document, Section, as_html, as_markdown
from draftsmith.measure.origin import measurement_origin
from tests.support.schemas import check_schema

SAME = Identity(3, 3, 90, 60, 40, None)
OTHER = Identity(3, 2, 90, 60, 40, Divergence("a|b", 7, 5, None, 0.125), compared=50, largest_margin=0.125)
TESTS = DistributionResult({"two samples": 0.4, "plain ids": 1.0}, 0.0005, 0, (500, 480), 0.07)
FAILED = DistributionResult({"two samples": 0.0001, "plain ids": 1.0}, 0.0005, 2, (500, 480), 0.07)


def as_json(certificate: Certificate) -> dict[str, Any]:
    origin = measurement_origin({"target": "lookup", "draft": "lookup"}, {"rule": "coupled"}, None)
    return certificate_json(certificate, CertifyPlan(), "lookup", origin)


def test_verdicts() -> None:
    assert Certificate(SAME, SAME, True, TESTS, 9).verdict == "identical"
    assert Certificate(SAME, OTHER, False, TESTS, 9).verdict == "identical in distribution"
    assert Certificate(SAME, OTHER, True, TESTS, 9).verdict == "differs"
    assert Certificate(OTHER, SAME, True, TESTS, 9).verdict == "differs"
    faults = Certificate(SAME, SAME, True, FAILED, 9).differences
    assert faults[0] == "2 sampled tokens have no probability under the target"
    assert "two samples; lowest p 1.0e-04" in faults[1]


def test_the_json_object_keeps_its_promise() -> None:
    for certificate in (Certificate(SAME, SAME, True, TESTS, 9), Certificate(OTHER, OTHER, False, FAILED, 9)):
        value = as_json(certificate)
        assert list(value) == ["verdict", "greedy", "sampled", "provenance"]
        check_schema(value, "certify")


def test_tampering_shows() -> None:
    value = json.loads(json.dumps(as_json(Certificate(OTHER, SAME, True, TESTS, 9))))
    assert certificate_digest(value) == value["provenance"]["certificate_sha256"]
    forged = copy.deepcopy(value)
    forged["verdict"] = "identical"
    assert certificate_digest(forged) != value["provenance"]["certificate_sha256"]


def test_the_page_says_it_all() -> None:
    value = as_json(Certificate(OTHER, SAME, True, TESTS, 9))
    page = as_markdown(certificate_page(value))
    assert "Verdict: differs: 1 of 3 greedy replies differ, the first at token 7 of a|b" in page
    assert "top-2 margin 0.125; 20 in 1,000 tokens, margins up to 0.125" in page
    assert "7.0% of the tokens" in page
    assert value["provenance"]["certificate_sha256"] in page
    html = as_html(certificate_page(value))
    assert "http" not in html.replace(value["provenance"]["platform"], "")  # needs nothing from elsewhere


class Balance(HTMLParser):
    """Checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag not in ("meta", "line", "rect", "circle", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_cannot_become_markup() -> None:
    nasty = "<script>alert('|')</script> & \"x\""
    document = Document(nasty, nasty, (Section(nasty, (nasty,), (("a", nasty), (nasty, "b"))),))
    reader = Balance()
    reader.feed(as_html(document))
    assert reader.open == []
    assert "script" not in as_html(document).replace("&lt;script&gt;", "").replace("&lt;/script&gt;", "")
    assert reader.text.count(nasty) == 7
    assert "| a | <script>alert('\\|')" in as_markdown(document)


def test_the_versions_of_torch_are_told_where_it_took_part(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    value = as_json(Certificate(SAME, SAME, True, TESTS, 9))
    check_schema(value, "certify")
    assert "torch" in value["provenance"]["packages"]
    monkeypatch.delitem(sys.modules, "torch")
    for name in ("transformers", "bitsandbytes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "packages" not in measurement_origin({}, {}, None)
