"""`paceline explain`: does this combination work, and what does it guarantee?"""

from __future__ import annotations

import json

import typer

from paceline.commands import options as o


def explain(
    model: o.Model = "pocket-code",
    drafter: o.Drafter = "ngram",
    verifier: o.Verifier = "coupled",
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    policy: o.Policies = None,
    prediction: o.Prediction = None,
    view: o.View = None,
    memory: o.Memory = None,
    as_json: o.Json = False,
    dtype: o.Dtype = None,
    device: o.Device = None,
    inflated: o.Inflated = None,
    trust_remote_code: o.Trust = False,
    allow_pickle: o.Pickle = False,
) -> None:
    """Print what a combination of parts would do, or the sentence saying why it cannot."""
    o.note_greedy(temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = o.prediction(prediction)
    engine = o.load_engine(
        model,
        drafter=drafter,
        verifier=verifier,
        dtype=dtype,
        device=device,
        inflated=inflated,
        max_rows=1,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        view=view,
        memory=memory,
    )
    plan = engine.explain(temperature=temperature, **o.policies(top_k, top_p, min_p, policy), **expected)
    if as_json:
        typer.echo(json.dumps({"guarantee": plan.guarantee.value, "lines": list(plan.lines)}))
    else:
        typer.echo(str(plan))
