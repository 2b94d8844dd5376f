"""Methods from what a command line says.

A method is named in text as ``kind[:NAME[=ARGUMENT]]``::

    bicubic                    the LR enlarged
    reference                  the masked reference copied, unaligned: it ignores the LR
    reference-unmasked         the same without the mask: the whole photo
    model:NAME=DIR             an RPF model with the pair's own reference
    model-none:NAME=DIR        without a reference
    model-swap:NAME=DIR        with a reference of another person
    model-unmasked:NAME=DIR    with the pair's own reference, its non-facial region not removed
    model-gt:NAME=DIR          with the ground truth as the reference, the upper end
    synthesized:NAME=DIR       what its last block makes of the own reference before it refines
    refinement:NAME=DIR        its refinement modules alone, chained, without any reference (GCFSR-type)
    gcfsr:NAME=FILE            the published GCFSR; FILE,blend=after_activation,normalize=false reads it otherwise
    folder:NAME=DIR            result images of any other system, matched by the names of the GTs
    mine.Sharper:NAME=ARGUMENT a subclass of `Method` in the importable module `mine`, made as Sharper(NAME, ARGUMENT)
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

from torch import Tensor

from rpf_lightning.baselines.gcfsr import Blend
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch
from rpf_lightning.evaluation.folder import Folder
from rpf_lightning.evaluation.methods import (
    Bicubic,
    CopiedReference,
    Function,
    Method,
    Model,
    PublishedGCFSR,
    Reference,
    RefinementChain,
    Synthesized,
)
from rpf_lightning.model import RPFModel
from rpf_lightning.model.storage import CONFIG_FILE

KINDS = (
    "bicubic", "reference", "reference-unmasked", "model", "model-none", "model-swap", "model-unmasked", "model-gt",
    "synthesized", "refinement", "gcfsr", "folder",
)  # fmt: skip
BLENDS = get_args(Blend)
Given = RPFModel | str | Path | Callable[[EvaluationBatch], Tensor]
"""A model, its directory, a folder of results, a `Method`, or a function that makes (B, 3, S, S) of a batch."""


def build_methods(specs: Sequence[str | Method], model_dir: str | None = None) -> list[Method]:
    """Make methods from text; a model directory is loaded once, however many methods name it.

    A `Method` is taken as it is; `model_dir` is the directory of models that name none.

    Raises:
        ValueError: If a text is of another form, or two methods have one name.
        FileNotFoundError: If what it names is missing.
    """
    models: dict[str, RPFModel] = {}

    def model(directory: str) -> RPFModel:
        key = str(Path(directory).resolve()) if Path(directory).exists() else directory
        if key not in models:
            models[key] = RPFModel.from_pretrained(directory)
        return models[key]

    methods = [spec if isinstance(spec, Method) else _build(spec, model_dir, model) for spec in specs]
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"expected a name of its own for every method, but {', '.join(twice)} is given twice"
        )
    return methods


def method_of(name: str, given: Given) -> Method:
    """Make a method of what a notebook has.

    Raises:
        FileNotFoundError: If it is neither a model directory nor a folder.
        ValueError: If two results of a folder have one name.
    """
    if isinstance(given, Method):
        return given
    if isinstance(given, RPFModel):
        return Model(name, given)
    if not isinstance(given, str | Path):
        return Function(name, given)
    if Path(given).is_dir() and not (Path(given) / CONFIG_FILE).is_file():
        return Folder(name, given)
    return Model(name, RPFModel.from_pretrained(given), source=Path(given).name)


def _build(spec: str, model_dir: str | None, model: Callable[[str], RPFModel]) -> Method:
    kind, colon, rest = spec.partition(":")
    name, _, argument = rest.partition("=")
    name = name or kind
    if "." in kind:
        return _outside(spec, kind, name, argument)
    if kind not in KINDS or (colon and not rest):
        raise ValueError(f"method {spec!r}: expected kind[:NAME[=ARGUMENT]], kind one of {', '.join(KINDS)}")
    if kind in ("bicubic", "reference", "reference-unmasked"):
        if argument:
            raise ValueError(f"method {spec!r}: {kind} takes no argument")
        return Bicubic(name) if kind == "bicubic" else CopiedReference(name, masked=kind == "reference")
    if kind in ("gcfsr", "folder"):
        if not argument:
            raise ValueError(f"method {spec!r}: expected {kind}:NAME={'FILE' if kind == 'gcfsr' else 'DIR'}")
        return _gcfsr(spec, name, argument) if kind == "gcfsr" else Folder(name, argument)
    directory = argument or model_dir
    if not directory:
        raise ValueError(f"method {spec!r}: expected {kind}:NAME=DIR, or a model_dir for all models")
    if kind in ("refinement", "synthesized"):
        part = RefinementChain if kind == "refinement" else Synthesized
        return part(name, model(directory), Path(directory).name)
    given = cast(Reference, kind.partition("-")[2] or "own")
    return Model(name, model(directory), given, Path(directory).name)


def _outside(spec: str, path: str, name: str, argument: str) -> Method:
    """A method of another package."""
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method {spec!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"method {spec!r}: expected a subclass of {Method.__module__}.Method, got {path}")
    return found(name, *([argument] if argument else []))


def _gcfsr(spec: str, name: str, argument: str) -> PublishedGCFSR:
    """The network of `FILE[,blend=...][,normalize=...]`."""
    path, *readings = re.split(r",(?=(?:blend|normalize)=)", argument)
    given = dict(reading.split("=", 1) for reading in readings)
    blend, normalize = given.get("blend", BLENDS[0]), given.get("normalize", "true")
    if blend not in BLENDS or normalize not in ("true", "false"):
        raise ValueError(f"method {spec!r}: expected blend={' or '.join(BLENDS)} and normalize=true or false")
    return PublishedGCFSR(name, path, cast(Blend, blend), normalize == "true")
