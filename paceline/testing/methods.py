"""Ready-made methods, at easy and at hard settings: the axes of the tests' cross-product.

A new method joins every test that runs over all methods by one line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from paceline.specs import parse
from paceline.testing.datastores import small

#: Spec strings; `{draft}` stands for the folder of a small model with the target's vocabulary, `{datastore}` for that
#: of a small datastore.
DRAFTERS: tuple[str, ...] = (
    "none",
    "ngram",
    "ngram(pick=earliest, max_ngram=2, length=3)",
    "ngram(candidates=4, confidence=0)",
    "recycling",
    "recycling(top=1, template='0 00 000')",
    "draft(model='{draft}', confidence=0)",
    "draft(model='{draft}', length=2, confidence=0.5)",
    "draft(model='{draft}', tree=dyspec(threshold=0.05), budget=7)",
    "draft(model='{draft}', tree=rsd_s(width=2))",
    "rasd(draft=draft(model='{draft}', tree=dyspec(threshold=0.1)))",
    "rasd(draft=draft(model='{draft}', tree=rsd_s(width=2)), retrieve=recycling, top=2, nodes=3)",
    "pearl(model='{draft}')",
    "pearl(model='{draft}', length=2, threads=false)",
    "merged(draft(model='{draft}', confidence=0), ngram)",
    "merged(draft(model='{draft}', tree=rsd_c('2 1'), budget=3), draft(model='{draft}', length=2, confidence=0.3))",
    "suffix",
    "suffix(tree=false, confidence=0, factor=99)",
    "translate(model='{draft}', confidence=0)",
    "translate(model='{draft}', length=2, confidence=0.1)",
    "lexical",
    "lexical(pads=2, placeholder=3)",
    "jacobi",
    "jacobi(block=3, init=random)",
    "sjd",
    "sjd(block=4, init=repeat)",
    "ceed",
    "lookahead",
    "lookahead(window=2, ngram=3, guesses=1, pool_from_prompt=false, accept_window=false)",
    "copyspec",
    "copyspec(gamma=1, copy=4, fallback=draft(model='{draft}', confidence=0))",
    "prediction(fallback=ngram)",
    "prediction(fallback=draft(model='{draft}', confidence=0), resume=unique)",
    "aggressive(confidence=0, fallback=ngram)",
    "aggressive(resume=nearest, ngram=1, fallback=ngram)",
    "quantised",
    "quantised(bits=4, length=2, confidence=0)",
    "early_exit",
    "early_exit(layer=1, length=3, confidence=0)",
    "self_speculative(confidence=0)",
    "self_speculative(skip(attention=1, mlp=1), length=3, confidence=0.3)",
    "swift",
    "swift(skip=0.8, confidence=0, length=3, window=2, max_score=1.0)",
    "swift(skip=0.3, confidence=0, length=4, tries=0, siblings=true)",
    "rest('{datastore}', shortest=1)",
    "rest('{datastore}', shortest=1, longest=2, confidence=0, nodes=9, hits=3, length=4)",
    "aded",
    "aded(datastore='{datastore}', adapt=tail, iterations=20, length=2, nodes=7)",
    "del",
    "del(layer=1, length=3, memory=0.5, threshold=false)",
    "easyspec(confidence=0)",
    "easyspec(model='{draft}', group=2, length=2, calibrate=false)",
    "rapid(model='{draft}', confidence=0)",
    "rapid(chunk=4, query=3, retrieved=8, length=3, confidence=0)",
    "turns(ngram(min_ngram=2), recycling, least=2)",
    "turns(ngram, draft(model='{draft}', confidence=0))",
    "auto(draft=draft(model='{draft}'), table=recycling)",
    "auto(copy=none, draft=draft(model='{draft}', confidence=0), most=2, shape=chain)",
)
#: Drafters that need the tokenizers of both models.
TEXT = ("translate",)

VERIFIERS: tuple[str, ...] = (
    "coupled",
    "rejection",
    "lexical(beta=2)",
    "lexical(beta=0.3)",
    "ceed(cap=1)",
    "block",
    "optimal",
    "recursive",
    "sequoia",
    "specinfer",
    "spectr",
    "typical",
    "typical(epsilon=1, delta=0.01)",
    "lenient(lenience=1)",
    "lenient(lenience=0.2)",
    "lantern(delta=0, neighbours=1, table=embedding)",
    "lantern(delta=0.4, neighbours=30, table=embedding)",
    "rapid(eta=0)",
    "rapid(eta=3, mode=paper)",
    "top_beta(beta=1)",
    "top_beta(beta=9, tau=4)",
    "bild(rollback=0)",
    "bild(rollback=4)",
    "synthetic(rate=0)",
    "synthetic(rate=0.7)",
)
#: Verifiers of vectors, which every model of token ids is refused.
VECTORS = ("cspd",)
#: Verifiers that change even greedy text; one of them heeds no policy.
RELAXED = (
    "lexical(beta=0.3)",
    "ceed(cap=1)",
    "lenient(lenience=0.2)",
    "lantern(delta=0.4, neighbours=30, table=embedding)",
    "bild(rollback=4)",
    "top_beta(beta=9, tau=4)",
    "synthetic(rate=0.7)",
)
LAWLESS = ("synthetic(rate=0.7)",)

#: Policies as `generate` takes them, by a name for each setting; ids stay below 32, the smallest vocabulary in use.
POLICIES: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "cutoffs": {"min_p": 0.05, "typical_p": 0.7, "epsilon_cutoff": 0.02, "eta_cutoff": 0.05},
    "repetition": {"repetition_penalty": 1.3},
    "presence and frequency": {"presence_penalty": 0.6, "frequency_penalty": 0.4},
    "no_repeat": {"no_repeat_ngram_size": 2},
    "bias": {"logit_bias": {3: 2.0, 4: -5.0}},
    "masks": {"banned_tokens": [1, 2], "allowed_tokens": list(range(24)), "min_new_tokens": 6},
    "all at once": {
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.2,
        "no_repeat_ngram_size": 3,
        "banned_tokens": [5],
        "top_k": 8,
        "top_p": 0.9,
    },
}


def one_each(specs: Iterable[str]) -> list[str]:
    """The first spec string of every method."""
    return list({parse(spec).name: spec for spec in reversed([*specs])}.values())[::-1]


def drafters(draft: str, thorough: bool = True) -> list[str]:
    """Spec strings of all drafters that work on token ids alone.

    Args:
        draft: folder of a small model with the target's vocabulary.
        thorough: at every setting, not at its first alone.
    """
    specs = DRAFTERS if thorough else one_each(DRAFTERS)
    return [filled(spec, draft) for spec in specs if parse(spec).name not in TEXT]


def filled(spec: str, draft: str) -> str:
    """A spec with its placeholders filled in.

    Args:
        spec: one of `DRAFTERS`.
        draft: folder of a small model with the target's vocabulary.
    """
    if "{datastore}" in spec:
        spec = spec.replace("{datastore}", small(Path(draft) / "datastore"))
    return spec.replace("{draft}", draft)
