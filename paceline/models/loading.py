"""Loading models: the pocket models by name, a local folder, a Hub id, or a module already in hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paceline.errors import BadRequest, ModelError
from paceline.models.causal import CausalModel
from paceline.models.check import self_check
from paceline.models.recurrent import RecurrentModel, is_recurrent
from paceline.models.seq2seq import Seq2SeqModel, is_seq2seq
from paceline.native import kernels
from paceline.native.pages import trim

POCKET = Path(__file__).resolve().parent.parent / "pocket"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    model: Any,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    fast: bool | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    inflated: str | None = None,
) -> CausalModel:
    """A `CausalModel` of a pocket model's name, a folder, a Hub id or a `PreTrainedModel`.

    Args:
        model: name, path or module. A module in hand keeps its dtype and device unless told otherwise.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or `"float64"`; by default bfloat16 where the device is
            fast with it, else float32.
        device: by default CUDA when there is one, else the CPU.
        fast: replace the forward pass by a faster equal one where that is possible (see `paceline.models.fast`). It
            takes the module over (its weights are packed away), so a module in hand is left as it is unless `True`.
        trust_remote_code: run code that comes with the checkpoint. Only for sources you trust.
        allow_pickle: accept checkpoints that are not safetensors.
        inflated: embed the model in a larger one of equal function (see `paceline.models.inflate`).

    Raises:
        BadRequest: no such model, folder without a model, unknown dtype or device.
        ModelError: the checkpoint cannot be read, or the loaded model fails the self-check.
        Unsupported: the architecture cannot be driven; the message says why.
    """
    for option, value in (("trust_remote_code", trust_remote_code), ("allow_pickle", allow_pickle), ("fast", fast)):
        if not isinstance(value, bool) and (value is not None or option != "fast"):
            raise BadRequest(f"{option}: {value!r} is not allowed; True or False is needed")
    chosen = pick_device(device) if device is not None or isinstance(model, str | Path) else None
    kind = pick_dtype(dtype, chosen, fast is not False) if dtype is not None or isinstance(model, str | Path) else None
    if isinstance(model, str | Path):
        name = str(model)
        module = _from_folder(resolve(name), name, kind, trust_remote_code, allow_pickle)
    elif hasattr(model, "config") and hasattr(model, "forward"):
        name, module = type(model).__name__, model
    else:
        raise BadRequest(f"model: {model!r} is neither a name, a folder, a Hub id nor a transformers model")
    if inflated is not None:
        from paceline.models.inflate import inflate_preset

        module, name = inflate_preset(module, inflated), f"{name} inflated to {inflated}"
    if chosen is not None or kind is not None:
        module = module.to(device=chosen, dtype=kind)
    module.requires_grad_(False)
    if is_recurrent(module):
        return RecurrentModel(module, name)
    adapter = Seq2SeqModel(module, name) if is_seq2seq(module) else CausalModel(module, name=name)
    self_check(adapter)
    if fast or (fast is None and isinstance(model, str | Path)):
        from paceline.models.fast import speed_up

        speed_up(adapter)
        trim()  # the weights that were laid out anew
    return adapter


def resolve(name: str) -> str:
    """The folder of a pocket model or a local folder, else the name itself (a Hub id). Raises `BadRequest`."""
    if (POCKET / name / "config.json").exists():
        return str(POCKET / name)
    path = Path(name).expanduser()
    if path.exists():
        if not (path / "config.json").exists():
            raise BadRequest(f"model: folder {name!r} holds no model (no config.json in it); see save_pretrained")
        return str(path)
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise BadRequest(f"model: there is no folder {name!r}")
    if "/" not in name:
        known = sorted(p.parent.name for p in POCKET.glob("*/config.json"))
        raise BadRequest(f"model: {name!r} is no pocket model ({', '.join(known)}), folder or Hub id (owner/name)")
    return name


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA if there is one, else the CPU. Raises `BadRequest`."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BadRequest(f"device: {device!r} is unknown; 'cpu' or 'cuda' is allowed") from error
    if chosen.type not in ("cpu", "cuda"):
        raise BadRequest(f"device: {str(device)!r} is not supported; 'cpu' or 'cuda' is allowed")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BadRequest(f"device: {device!r} is not available here; PyTorch sees no CUDA device")
    return chosen


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device | None, packed: bool = True) -> torch.dtype:
    """The dtype asked for, else bfloat16 where the device is fast with it, else float32. Raises `BadRequest`.

    Args:
        dtype: by name, or itself.
        device: where the model will be.
        packed: whether its matrices will be (`paceline.models.packing`), so that kernels of our own multiply them.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise BadRequest(f"dtype: {dtype!r} is unknown; {', '.join(DTYPES)} are allowed")
        return DTYPES[dtype]
    if device is not None and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if fast_bfloat16(packed) else torch.float32


def fast_bfloat16(packed: bool = True) -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32: itself, or, packed ones, by our kernels."""
    native = kernels() if packed else None
    if native is not None and native.library.widened_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "avx512_bf16" in _cpu_flags()


def load_tokenizer(model: Any, tokenizer: Any = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer given, else the one beside the model, else `None` (prompts must then be token ids)."""
    if tokenizer is not None and not isinstance(tokenizer, str | Path):
        if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
            raise BadRequest(
                f"tokenizer: {tokenizer!r:.80} is not allowed; a transformers tokenizer or a name is needed"
            )
        return tokenizer
    source = tokenizer if tokenizer is not None else model
    if not isinstance(source, str | Path):
        source = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
        if not source:
            return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(str(source)), trust_remote_code=trust_remote_code)
    except BadRequest as error:
        if tokenizer is None:
            return None  # a module in hand whose folder is gone
        raise BadRequest(f"tokenizer: {tokenizer!r} cannot be loaded: {error}") from error
    except Exception as error:  # as in `_from_folder`
        if tokenizer is not None or any(Path(source).expanduser().glob("tokenizer*")):
            raise BadRequest(f"tokenizer: {str(source)!r} cannot be loaded: {_first_line(error)}") from error
        return None


def _from_folder(folder: str, name: str, dtype: torch.dtype | None, trust: bool, allow_pickle: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        loaded = kind.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trust,
            use_safetensors=None if allow_pickle else True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except Exception as error:  # whatever foreign code raises about files, formats and packages that it misses
        raise ModelError(f"model: {name!r} cannot be loaded: {_first_line(error)}{_advice(folder)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    module, found = loaded
    _complete(name, found)
    return module


def _complete(name: str, found: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights: transformers would draw them at random. Raises `ModelError`."""
    shapes = [f"{key} is {list(given)}, not {list(wanted)}" for key, given, wanted in found["mismatched_keys"]]
    if shapes:
        raise ModelError(f"model: {name!r} does not fit its config.json: {_few(shapes)}")
    if found["missing_keys"]:
        raise ModelError(
            f"model: the checkpoint {name!r} lacks {_few(sorted(found['missing_keys']))}; "
            "a whole model with a language-model head is needed"
        )


def _few(items: list[str], most: int = 3) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _advice(folder: str) -> str:
    """What to do about a folder whose weights are not safetensors."""
    pickled = sorted(path.name for path in Path(folder).glob("*.bin")) if Path(folder).is_dir() else []
    if not pickled or any(Path(folder).glob("*.safetensors")):
        return ""
    return f"; {pickled[0]} is a pickle, which may run code when it is read: allow_pickle=True accepts it"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()
