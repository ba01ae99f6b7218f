"""Reads and writes the sentence-transformers files of a model folder, which define its sentence vectors."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ppa_fast.errors import UserError
from ppa_fast.settings import POOLINGS

TRAINED = ("Transformer", "Pooling", "Normalize")
KEPT = "sentence_transformers.json"  # in a run's model folder: the base model's SentenceModules


def _read(name_or_dir: str, file: str) -> Any:
    """The JSON content of a model's file; None if the file does not exist."""
    path = Path(name_or_dir) / file
    if not Path(name_or_dir).is_dir():
        try:
            path = Path(hf_hub_download(name_or_dir, file))
        except EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _modules(name_or_dir: str) -> dict[str, str]:
    """The folder of each module by class name, in order; the default pooling folder if no module is listed."""
    listed = _read(name_or_dir, "modules.json") or [{"type": "Pooling", "path": "1_Pooling"}]
    return {module["type"].rsplit(".", 1)[-1]: module["path"] for module in listed}


def _pooling_config(name_or_dir: str) -> tuple[str, dict[str, Any]]:
    """The path and content of the pooling file; the content is empty if the file does not exist."""
    file = f"{_modules(name_or_dir).get('Pooling', '1_Pooling')}/config.json"
    return f"{name_or_dir}/{file}", _read(name_or_dir, file) or {}


def is_sentence_encoder(name_or_dir: str) -> bool:
    """Whether a model has the files of sentence-transformers."""
    return _read(name_or_dir, "modules.json") is not None


def stated_pooling(name_or_dir: str) -> str | None:
    """The pooling in a model's ``1_Pooling/config.json`` of sentence-transformers; None if there is none.

    Raises UserError if it is neither "cls" nor "mean".
    """
    path, config = _pooling_config(name_or_dir)
    if not config:
        return None
    # A single key since sentence-transformers 6; one boolean per pooling before.
    modes = config.get("pooling_mode")
    if modes is None:
        flags = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        modes = [flags.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(f"{path}: found pooling {modes}, expected one of {', '.join(POOLINGS)}; set --pooling")
    pooling: str = modes[0]
    return pooling


@dataclass(frozen=True)
class SentenceModules:
    """Settings of a sentence-transformers folder besides its pooling; the defaults apply to any other folder.

    ``untrained``: classes of its modules that are not trained here, such as Dense. ``max_seq_length``: the length in
    tokens, special tokens included, that sentences are truncated to; None if not given. ``prompts``: the prompts by
    name, the default prompt and the similarity, from ``config_sentence_transformers.json`` without versions.
    """

    normalize: bool = False
    untrained: list[str] = field(default_factory=list)
    max_seq_length: int | None = None
    do_lower_case: bool = False
    include_prompt: bool = True
    prompts: dict[str, Any] = field(default_factory=lambda: {"similarity_fn_name": "cosine"})

    @classmethod
    def of(cls, name_or_dir: str) -> SentenceModules:
        """Reads the settings of a model; raises UserError for invalid JSON."""
        modules, transformer = _modules(name_or_dir), _read(name_or_dir, "sentence_bert_config.json") or {}
        # Since sentence-transformers 6 only the tokenizer has the length.
        length = (_read(name_or_dir, "tokenizer_config.json") or {}).get("model_max_length") if transformer else None
        prompts = _read(name_or_dir, "config_sentence_transformers.json") or {}
        return cls(
            "Normalize" in modules,
            [module for module in modules if module not in TRAINED],
            transformer.get("max_seq_length") or length,
            transformer.get("do_lower_case", False),
            _pooling_config(name_or_dir)[1].get("include_prompt", True),
            {**cls().prompts, **{name: value for name, value in prompts.items() if name != "__version__"}},
        )

    @classmethod
    def kept(cls, folder: Path) -> SentenceModules:
        """Reads the settings written by :meth:`keep`; the defaults in older folders."""
        return cls(**(_read(str(folder), KEPT) or {}))

    def keep(self, folder: Path) -> None:
        """Saves the settings in a run's model folder."""
        _write(folder / KEPT, dataclasses.asdict(self))

    def write(self, folder: Path, hidden_size: int, pooling: str, max_seq_length: int) -> None:
        """Writes the files of sentence-transformers, in a format for versions 3 and later."""
        kind = "sentence_transformers.models"
        paths = {"Transformer": "", "Pooling": "1_Pooling"} | ({"Normalize": "2_Normalize"} if self.normalize else {})
        modules = [
            {"idx": index, "name": str(index), "path": path, "type": f"{kind}.{name}"}
            for index, (name, path) in enumerate(paths.items())
        ]
        _write(folder / "modules.json", modules)
        length = {"max_seq_length": max_seq_length, "do_lower_case": self.do_lower_case}
        _write(folder / "sentence_bert_config.json", length)
        pooled = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
        pooled_config = {"word_embedding_dimension": hidden_size, **pooled, "include_prompt": self.include_prompt}
        _write(folder / "1_Pooling" / "config.json", pooled_config)
        _write(folder / "config_sentence_transformers.json", self.prompts)
        if self.normalize:
            (folder / "2_Normalize").mkdir()
