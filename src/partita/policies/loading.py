"""Model folders and hub names to models and tokenizers, with one clear line when something is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from partita.core.collector import unswept
from partita.core.errors import UserError, nearest

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "models"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []


def locate(model: str) -> str:
    """The folder of a local or shipped model, or the hub name as it is. Raises UserError for a missing folder."""
    if not model:
        raise UserError(f"model: no name is given; give a model folder, a hub name, or a shipped model ({_names()})")
    if model in shipped():
        return str(SHIPPED / model)
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise UserError(f"model: {model} is a file; give the folder that holds config.json and the weights")
    if model.count("/") > 1 or model.startswith(("/", ".", "~")) or model.endswith("/"):
        raise UserError(f"model: no folder {model!r}; give a model folder, a hub name, or a shipped model ({_names()})")
    check_hub(model)
    return model


def check_hub(model: str) -> None:
    """Raise UserError at once, rather than after many retries, when a hub name is not cached and no hub is in reach."""
    import socket
    from urllib.parse import urlparse
    from urllib.request import getproxies

    from huggingface_hub import constants, try_to_load_from_cache

    try:
        if constants.HF_HUB_OFFLINE or getproxies() or isinstance(try_to_load_from_cache(model, "config.json"), str):
            return
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except ValueError as error:
        raise UserError(f"model: {model!r} is neither a folder nor a hub name; shipped models: {_names()}") from error
    except OSError as error:
        raise UserError(
            f"model: {model!r} is not a folder, and the hub cannot be reached to fetch it; shipped models: {_names()}"
        ) from error


def _names() -> str:
    return ", ".join(shipped()) or "none in this installation"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(
            f"model: {path} cannot be read as JSON ({_line(error)}); fetch or save the model again"
        ) from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def adapter_base(folder: str) -> str | None:
    """For a folder that holds a LoRA adapter alone, the model that it belongs to; else None."""
    path = Path(folder)
    if not (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return None
    base = _read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise UserError(f"model: {path}/adapter_config.json names no base_model_name_or_path; add it")
    return base


def check_folder(folder: str) -> None:
    """Raise UserError unless a local folder holds a configuration, a tokenizer and whole safetensors weights."""
    path = Path(folder)
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        raise UserError(f"model: {path} has no config.json; give a folder written by save_pretrained")
    _read_json(path / "config.json")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"model: {path} has no tokenizer (tokenizer.json); save the tokenizer into the folder")
    weights = sorted(path.glob("*.safetensors"))
    if not any(p.name.startswith("model") for p in weights):
        raise UserError(f"model: {path} has no model*.safetensors; save the weights in the safetensors format")
    check_weights(weights)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        for name in sorted(set(_read_json(index).get("weight_map", {}).values())):
            if not (path / name).is_file():
                raise UserError(f"model: {path} lacks {name}, which its index names; fetch the model again")


def check_weights(files: list[Path]) -> None:
    """Raise UserError for a safetensors file that is corrupt or truncated."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(str(file), framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"model: {file} is corrupt or truncated ({_line(error)}); fetch or save the model again"
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers prints neither progress nor advice."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    loudness = hub.level
    hub.setLevel(logging.ERROR)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        hub.setLevel(loudness)
        if bars:
            theirs.enable_progress_bar()


def _unasked(record: logging.LogRecord) -> bool:
    return "passing in an `attention_mask`" not in str(record.msg)


def _refusal(model: str, remote_code: bool, error: BaseException) -> UserError:
    text = str(error)
    if not remote_code and ("trust_remote_code" in text or "remote code" in text.lower()):
        return UserError(f"model: {model} needs code from its repository; read it, then set remote_code=True to run it")
    if isinstance(error, OSError) and not Path(model).is_dir():
        return UserError(
            f"model: {model!r} is not a folder and could not be fetched from the hub ({_line(error)}); "
            f"shipped models: {_names()}; {nearest(model, shipped())}"
        )
    return UserError(f"model: {model} could not be loaded ({_line(error)}); check the folder, or save the model again")


def load_tokenizer(folder: str, model: str, remote_code: bool) -> tuple[Any, list[str]]:
    """The tokenizer, padding on the right, and notes on what was filled in. Raises UserError if unusable."""
    with unswept():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer lets the type of the model overrule a folder that declares a tokenizer of no particular type.
    declared = Path(folder) / "tokenizer_config.json"
    generic = declared.is_file() and _read_json(declared).get("tokenizer_class") in GENERIC
    loader: Any = PreTrainedTokenizerFast if generic else AutoTokenizer
    with quiet():
        try:
            tokenizer = loader.from_pretrained(folder, trust_remote_code=remote_code)
        except Exception as error:
            raise _refusal(model, remote_code, error) from error
    notes = []
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model: the tokenizer of {model} has no eos_token, so responses could not end; "
            "set tokenizer.eos_token and save the tokenizer again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"the tokenizer of {model} has no pad_token: eos_token {tokenizer.eos_token!r} pads instead")
    tokenizer.padding_side = "right"
    return tokenizer, notes


def load_model(folder: str, model: str, dtype: torch.dtype, remote_code: bool) -> Any:
    """The causal language model in evaluation mode. Raises UserError if anything of it is missing."""
    with unswept():
        from transformers import AutoModelForCausalLM

    # GPT-2 types warn of padding without a mask; on the right of causal attention it needs none.
    logging.getLogger("transformers.modeling_utils").addFilter(_unasked)
    lm: Any
    info: Any
    if not remote_code and (config := Path(folder) / "config.json").is_file():
        from transformers import CONFIG_MAPPING

        settings = _read_json(config)
        if "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING:
            raise _refusal(model, remote_code, ValueError("remote code"))
    with quiet(), unswept(), torch.random.fork_rng(devices=[]):
        try:
            lm, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                trust_remote_code=remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise _refusal(model, remote_code, error) from error
    absent = sorted(info["missing_keys"]) + sorted(str(k) for k in info.get("mismatched_keys", ()))
    if absent:
        raise UserError(
            f"model: the weights of {model} lack {len(absent)} tensors, first {absent[0]}; "
            "the configuration belongs to another model, or the weights were cut: fetch or save it again"
        )
    return lm.eval()


def check_vocabulary(lm: Any, tokenizer: Any, model: str) -> None:
    """Raise UserError when the tokenizer knows ids that the model has no embedding for."""
    rows, known = lm.get_input_embeddings().weight.shape[0], len(tokenizer)
    if known > rows:
        raise UserError(
            f"model: the tokenizer of {model} has {known} tokens, the model only {rows} embeddings; "
            "use the tokenizer that the model was trained with"
        )
