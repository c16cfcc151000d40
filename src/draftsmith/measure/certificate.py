"""The certificate as an object for programs (schema: docs/schemas/certify.json) and as a page for people."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from draftsmith.measure.certify import Certificate, CertifyPlan, Identity
from draftsmith.measure.document import Document, Section, reference_name

__all__ = ["certificate_digest", "certificate_json", "certificate_page"]

_TESTS = {
    "two samples": "frequencies of tokens and short sequences, speculative against plain (G-test by shuffling)",
    "speculative ids": "how often each token was written, against the target's probabilities (Freedman's bound)",
    "speculative bins": "place of each token in the target's distribution is uniform (chi-square, 16 bins)",
    "speculative mean": "the same, its mean (normal)",
    "plain ids": "control: the ids test of plain replies",
    "plain bins": "control: the bins test of plain replies",
    "plain mean": "control: the mean test of plain replies",
}


def certificate_json(
    certificate: Certificate, plan: CertifyPlan, drafter: str, provenance: dict[str, Any]
) -> dict[str, Any]:
    """The object that ``certify --json`` prints. ``provenance`` gets the SHA-256 of all the rest."""
    result = certificate.distribution
    sampling = plan.sampling
    value: dict[str, Any] = {
        "verdict": certificate.verdict,
        "greedy": {**_identity(certificate.greedy), "drafter": drafter},
        "sampled": {
            **_identity(certificate.sampled),
            "identity_promised": certificate.promised,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seeds": plan.seeds,
            "distribution": {
                "same": result.same,
                "p_values": dict(result.p_values),
                "threshold": result.threshold,
                "error_rate": plan.error_rate,
                "failed": list(result.failed),
                "impossible_tokens": result.impossible,
                "replies": [plan.samples * plan.sample_prompts] * 2,
                "tokens": list(result.tokens),
                "num_draft_tokens": certificate.distribution_drafts,
                "detectable_share": result.detectable,
                "power": 0.9,
            },
        },
        "provenance": {**provenance, "differences": list(certificate.differences)},
    }
    value["provenance"]["certificate_sha256"] = certificate_digest(value)
    return value


def certificate_digest(value: dict[str, Any]) -> str:
    """SHA-256 of a certificate without its own digest: sorted keys, no spaces, UTF-8. Tells whether it was altered."""
    rest = {k: v for k, v in value["provenance"].items() if k != "certificate_sha256"}
    text = json.dumps({**value, "provenance": rest}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def certificate_page(value: dict[str, Any]) -> Document:
    """The page, from the JSON object."""
    origin, tests = value["provenance"], value["sampled"]["distribution"]
    models = origin["models"]
    verdict = value["verdict"]
    lead = verdict if verdict != "differs" else "differs: " + "; ".join(origin["differences"])
    share = tests["detectable_share"]
    return Document(
        f"Losslessness of {reference_name(models.get('target', 'the target'))} with the drafter "
        f"{reference_name(value['greedy']['drafter'])}",
        f"Verdict: {lead}.",
        (
            Section("Texts compared token by token", (_sampled_note(value["sampled"]),), _identity_table(value)),
            Section(
                "Distribution of sampled replies",
                (
                    f"{tests['replies'][0]} plain and {tests['replies'][1]} speculative replies with different seeds; "
                    f"{tests['tokens'][1]} speculative tokens tested, {tests['num_draft_tokens']} draft tokens "
                    f"proposed. A test fails at p <= {tests['threshold']:.2g}, so that all together raise a false "
                    f"alarm in at most {tests['error_rate']:.2%} of runs.",
                    f"Power: if {share:.1%} of the tokens were replaced by the target's likeliest one, the mean test "
                    "would find it with 90 % probability."
                    if share < 1
                    else "Power: too little was drawn at random here to find a fault of that kind.",
                ),
                (
                    ("test", "what it compares", "p", "passed"),
                    *(
                        (name, _TESTS[name], f"{p:.3g}", "no" if name in tests["failed"] else "yes")
                        for name, p in tests["p_values"].items()
                    ),
                ),
            ),
            Section("Where this comes from", (), _origin_table(origin)),
        ),
    )


def _identity(identity: Identity) -> dict[str, Any]:
    where = identity.first_divergence
    return {
        "replies": identity.replies,
        "identical": identity.identical,
        "tokens": identity.tokens,
        "num_draft_tokens": identity.num_draft_tokens,
        "num_accepted_tokens": identity.num_accepted_tokens,
        "first_divergence": None if where is None else asdict(where),
        "divergence_rate": identity.divergence_rate,
        "largest_margin": identity.largest_margin,
    }


def _sampled_note(sampled: dict[str, Any]) -> str:
    settings = (
        f"Sampled at temperature {sampled['temperature']:g}, top-k {sampled['top_k']}, top-p {sampled['top_p']:g}. "
    )
    if sampled["identity_promised"]:
        return settings + "The coupled rule promises equal tokens for equal seeds."
    return settings + "The rejection rule promises the distribution only: other tokens for equal seeds are no fault."


def _identity_table(value: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows: list[tuple[str, ...]] = [
        ("", "replies", "identical", "tokens", "draft tokens", "accepted", "first divergence")
    ]
    for kind in ("greedy", "sampled"):
        part = value[kind]
        where = part["first_divergence"]
        told = "" if where is None else f"{where['id']}, token {where['position']}, top-2 margin {where['margin']:.3g}"
        if part["divergence_rate"]:
            told += (
                f"; {1000 * part['divergence_rate']:.2g} in 1,000 tokens, margins up to {part['largest_margin']:.3g}"
            )
        counts = ("replies", "identical", "tokens", "num_draft_tokens", "num_accepted_tokens")
        rows.append((kind, *(str(part[key]) for key in counts), told))
    return tuple(rows)


def _origin_table(origin: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = [("what", "value")]
    rows += [
        (f"SHA-256 of {role} {name}", digest)
        for role, hashes in origin["weights_sha256"].items()
        for name, digest in hashes.items()
    ]
    rows += [
        (key, str(origin[key])) for key in ("draftsmith", "git_commit", "python", "platform", "cpu", "cpus", "date")
    ]
    rows += [
        ("options", ", ".join(f"{key} {value}" for key, value in origin["options"].items())),
        ("prompts", origin["prompts"]),
        ("SHA-256 of this certificate", origin["certificate_sha256"]),
    ]
    return tuple(rows)
