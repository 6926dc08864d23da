"""From keyword arguments to a request's settings, and from these to its policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline import registry
from paceline.errors import BadRequest
from paceline.policies.base import Pipeline, Policy
from paceline.policies.temperature import Temperature
from paceline.requests import Sampling

#: Order in which policies given as keyword arguments run within a stage, as in transformers.
ORDER = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
#: What may be set beside policies.
FIELDS = tuple(Sampling.__dataclass_fields__)


def settings_of(base: Sampling | None, options: Mapping[str, Any]) -> Sampling:
    """Settings with some fields replaced.

    Args:
        base: what holds where `options` says nothing; the defaults where there is none.
        options: fields of `Sampling`, and policies by their argument. Raises `BadRequest` for values out of range.
    """
    if base is not None and not isinstance(base, Sampling):
        raise BadRequest(f"sampling: {base!r:.80} is not allowed; a Sampling is needed, or its fields as arguments")
    values = {name: getattr(base, name) for name in FIELDS} if base is not None else {}
    extra = dict(values.pop("options", {}))
    for name, value in options.items():
        if name == "policies":
            values[name] = _listed(value)
        elif name in FIELDS and name != "options":
            values[name] = value
        else:
            extra[name] = value
    return Sampling(options=extra, **values)


def _listed(policies: object) -> tuple[object, ...]:
    if isinstance(policies, list | tuple):
        return tuple(policies)
    if isinstance(policies, str | Policy):
        return (policies,)
    raise BadRequest(f"policies: {policies!r:.80} is not allowed; a spec string, a policy or a list of them is needed")


def build_pipeline(sampling: Sampling) -> Pipeline:
    """Policies of some settings, in order: keyword arguments in the order of `ORDER`, then `policies` as given."""
    by_argument = {m.argument: m for m in registry.methods("policy") if m.argument}
    policies: list[Policy] = []
    for name in sorted(sampling.options, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER)):
        if name not in by_argument:
            known = dict.fromkeys([*FIELDS, *by_argument, "drafter", "verifier", "callback"])
            raise BadRequest(f"argument {registry.suggest(name, [n for n in known if n != 'options'])}")
        value = sampling.options[name]
        if value is not None:
            found = by_argument[name]
            policies.append(registry.construct(found, {registry.fields(found)[0]: value}, name))
    greedy = sampling.temperature == 0
    if not greedy:
        policies.insert(0, registry.build("policy", f"temperature({float(sampling.temperature)!r})"))
    extra = [p if isinstance(p, Policy) else registry.build("policy", p) for p in sampling.policies]
    if any(isinstance(p, Temperature) for p in extra):
        raise BadRequest("policies: temperature has an argument of its own; give temperature= instead")
    policies += extra
    return Pipeline.of(policies, greedy)
