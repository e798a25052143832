"""generation_config.json: how a model's authors like it to speak.

Training has no use for it, and asking follows none of it but ids of tokens
(`core.training.generation`); yet of a file that contradicts itself `transformers` either loads no
model, or stores none.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final

from transformers import GenerationConfig
from transformers.utils import cached_file

logger = logging.getLogger(__name__)

_NAME: Final = "generation_config.json"
#: what the others may contradict
_MODES: Final = ("do_sample", "num_beams")


def mended_generation_config(where: dict[str, Any]) -> GenerationConfig | None:
    """What of the file goes together; the rest is named in the log. None: all of it does, or there
    is none; `transformers` reads it itself.

    Args:
        where: arguments of ``from_pretrained``.
    """
    options = dict(where)
    source = options.pop("pretrained_model_name_or_path")
    try:
        GenerationConfig.from_pretrained(source, **options).validate(strict=True)
    except OSError:
        return None  # no such file, or no JSON: transformers goes by config.json
    except Exception:  # noqa: BLE001  it raises whatever comes of a value that it did not expect
        path = cached_file(source, _NAME, **options)
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(said, dict):
            return _mended(said, path)
        logger.warning("%s is not used: it holds no JSON object", path)
        return GenerationConfig.from_pretrained(source, "config.json", **options)
    return None


def _mended(said: dict[str, Any], path: str) -> GenerationConfig:
    kept: dict[str, Any] = {}
    config = GenerationConfig()
    for name, value in sorted(said.items(), key=lambda item: item[0] not in _MODES):
        try:
            tried = GenerationConfig(**kept, **{name: value})
            # as when it is stored
            tried.validate(strict=True)
        except Exception as error:  # noqa: BLE001  as above
            reason = " ".join(str(error).split())
            logger.warning("%s: %s is not used: %s", path, name, reason)
        else:
            kept[name], config = value, tried
    return config
