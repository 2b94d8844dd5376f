"""Where third-party weights are found: explicit path, `RPF_WEIGHTS_DIR`, the cache, a download of known SHA-256.

Nothing is downloaded before a network asks for its weights. What was downloaded is hashed again where its size or time
changed. docs/weights.md has the table for people.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from rpf_lightning.environment import OFFLINE_VARIABLE, offline
from rpf_lightning.files import write_atomically

WEIGHTS_VARIABLE = "RPF_WEIGHTS_DIR"
CACHE_VARIABLE = "RPF_CACHE_DIR"
PACKS = "insightface/models"
DEFAULT_PACK = "buffalo_l"
SILENCE = 30.0  # seconds without a byte


@contextmanager
def whole(file: Path) -> Iterator[None]:
    """Name a file of weights in whatever its reader raises about it: truncated, empty, a pointer of Git LFS.

    Raises:
        ValueError: In place of any other exception but those that say nothing about the file.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{file}: expected a whole file of weights, reading it gave {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class Weight:
    """One download.

    Attributes:
        name: Key in `WEIGHTS`.
        files: Paths below a weights folder, the first that exists is taken; the last is the one downloaded.
        url: A file, or the zip archive of a pack; "" where there is no download.
        sha256: Of what the URL gives.
        size_mb: Of what the URL gives, in 10^6 bytes.
        licence: Of the weights, in words.
        source: Who publishes them.
    """

    name: str
    files: tuple[str, ...]
    url: str
    sha256: str
    size_mb: float
    licence: str
    source: str

    @property
    def is_pack(self) -> bool:
        """Whether it is a folder of files, downloaded as a zip archive."""
        return self.files[-1].startswith(f"{PACKS}/")


_FACE_ALIGNMENT_LICENCE = "BSD-3-Clause, trained on images of others"

WEIGHTS = {
    weight.name: weight
    for weight in (
        Weight(
            name="alexnet",
            files=("alexnet_features.pth", "alexnet-owt-7be5be79.pth"),
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            size_mb=244.4,
            licence="BSD-3-Clause code, trained on ImageNet",
            source="torchvision",
        ),
        Weight(
            name="bisenet",
            files=("parsing_bisenet.pth",),
            url="https://github.com/xinntao/facexlib/releases/download/v0.2.0/parsing_bisenet.pth",
            sha256="468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
            size_mb=53.3,
            licence="MIT code, trained on CelebAMask-HQ, which is for non-commercial research only",
            source="facexlib",
        ),
        Weight(
            name="s3fd",
            files=("s3fd-619a316812.pth",),
            url="https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
            sha256="619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
            size_mb=89.8,
            licence=_FACE_ALIGNMENT_LICENCE,
            source="face-alignment",
        ),
        Weight(
            name="fan",
            files=("2DFAN4-11f355bf06.pth.tar",),
            url="https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar",
            sha256="11f355bf0693120222f5955ce3f9dc8fb5763ebb30a47d7906e509490d32e4aa",
            size_mb=95.6,
            licence=_FACE_ALIGNMENT_LICENCE,
            source="face-alignment",
        ),
        Weight(
            name=DEFAULT_PACK,
            files=(f"{PACKS}/{DEFAULT_PACK}",),
            url="https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
            sha256="80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
            size_mb=288.6,
            licence="non-commercial research only",
            source="insightface",
        ),
    )
}


def weights_dir() -> Path | None:
    """The folder named by the environment variable `RPF_WEIGHTS_DIR`, if it is set."""
    value = os.environ.get(WEIGHTS_VARIABLE)
    return Path(value) if value else None


def cache_dir() -> Path:
    """The folder of downloads: `RPF_CACHE_DIR`, else `rpf-lightning` in the user's cache folder."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    caches = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "rpf-lightning"


def weight_file(name: str, explicit: str | Path | None = None) -> Path:
    """Find a file of weights, or download it.

    Args:
        name: Key in `WEIGHTS`.
        explicit: A file to use instead of searching.

    Raises:
        FileNotFoundError: If the explicit file is absent; if there is none and it cannot be downloaded: says what
            is needed, where, and its licence.
        ValueError: If the download has another SHA-256 than the one in `WEIGHTS`.
    """
    if explicit:
        path = Path(explicit)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}, named for the weights {name!r}, is missing; no other is used instead. Name a file that "
                "is there, or none: then they are looked for and downloaded"
            )
        return path
    return _locate(WEIGHTS[name])


def alexnet_file(explicit: str | Path | None = None) -> Path:
    """Find AlexNet's ImageNet convolutions, as `weight_file` does."""
    return weight_file("alexnet", explicit)


def insightface_pack(name: str | None = None) -> Path:
    """Find an insightface model pack, a folder of ONNX files; buffalo_l is downloaded if it is absent.

    Args:
        name: Name of the pack. None: buffalo_l, unless `RPF_WEIGHTS_DIR` holds exactly one pack: then that one.

    Raises:
        FileNotFoundError: If there is none and it cannot be downloaded: says what is needed, where, and its
            licence.
        ValueError: If the download has another SHA-256 than the one in `WEIGHTS`.
    """
    packs = _own_packs()
    if not name and len(packs) == 1:
        return packs[0]
    weight, wanted = WEIGHTS[DEFAULT_PACK], name or DEFAULT_PACK
    if wanted != DEFAULT_PACK:
        weight = replace(weight, name=wanted, files=(f"{PACKS}/{wanted}",), url="")
    return _locate(weight)


def is_here(name: str) -> bool:
    """Whether AlexNet ("alexnet") or an insightface pack ("pack") would be found without a download."""
    if name == "pack" and len(_own_packs()) == 1:
        return True
    weight = WEIGHTS[DEFAULT_PACK if name == "pack" else name]
    return any(path.exists() for path in _candidates(weight))


def _locate(weight: Weight) -> Path:
    for path in _candidates(weight):
        if path.is_dir() if weight.is_pack else path.is_file():
            _check_download(path)
            return path
    return _download(weight)


def _record_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.downloaded.json")


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _state_of(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(path: Path) -> dict[str, list[int | str]]:
    """Size, time and SHA-256 of a file, or of those in a folder, by their paths below it."""
    return {file.relative_to(path).as_posix(): [*_state_of(file), _hash_of(file)] for file in _files_of(path)}


def _record(path: Path, files: dict[str, list[int | str]]) -> None:
    """Write down what was downloaded, so that a change is noticed later."""
    write_atomically(_record_of(path), json.dumps(files, indent=2).encode())


def _check_download(path: Path) -> None:
    """Hash files that were downloaded where their size or time is another one by now; others are the user's own.

    Raises:
        ValueError: If a file is missing or its content is another one.
    """
    record = _record_of(path)
    if not record.is_file():
        return
    try:
        known = {
            path / name: (state, sha256) for name, (*state, sha256) in json.loads(record.read_bytes()).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{record}: expected what was downloaded, got {error}; delete it and {path}"
        ) from error
    changed = [file for file, (state, _) in known.items() if not file.is_file() or _state_of(file) != state]
    for file in changed:
        if not file.is_file() or _hash_of(file) != known[file][1]:
            raise ValueError(
                f"{file} is not what was downloaded any more (its SHA-256 is another one, or it is missing): delete "
                f"{path}, then it is downloaded again"
            )
    if changed and os.access(record.parent, os.W_OK):  # else it is hashed again the next time
        _record(path, _described(path))


def _candidates(weight: Weight) -> list[Path]:
    own = weights_dir()
    return [folder / file for folder in (*([own] if own else []), cache_dir()) for file in weight.files]


def _own_packs() -> list[Path]:
    own = weights_dir()
    models = own / PACKS if own else None
    if models is None or not models.is_dir():
        return []
    # a hidden folder is a download under way: the cache may be `RPF_WEIGHTS_DIR` as well
    return sorted(path for path in models.iterdir() if path.is_dir() and not path.name.startswith("."))


def _download(weight: Weight) -> Path:
    if not weight.url:
        raise _missing(weight, f"{DEFAULT_PACK} is the only pack that is downloaded")
    if offline():
        raise _missing(weight, f"{OFFLINE_VARIABLE} is set, so {weight.url} was not downloaded")
    from torch.hub import download_url_to_file  # imported here: slow to import

    target = cache_dir() / weight.files[-1]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside the target: a rename does not cross file systems
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            fetched = Path(folder) / "download"
            what = f"the weights {weight.name!r} of {weight.source}, {weight.size_mb} MB ({weight.licence})"
            print(f"downloading {what}: {weight.url} to {target}", file=sys.stderr)  # results go to stdout
            with _timeout(SILENCE):
                download_url_to_file(weight.url, str(fetched), hash_prefix=weight.sha256)
            if weight.is_pack:
                archive, fetched = fetched, Path(folder) / "pack"
                shutil.unpack_archive(archive, fetched, "zip")
            _record_of(target).unlink(missing_ok=True)  # of what was there before
            described = _described(fetched)
            _move(fetched, target)
            _record(target, described)
    except RuntimeError as error:  # torch's word for another hash
        raise ValueError(
            f"{weight.url}: {error}; it is another file, or broke off. It was deleted"
        ) from error
    except (OSError, HTTPException) as error:
        raise _missing(weight, f"{weight.url} could not be downloaded: {error}") from error
    return target


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Give up on a silent server; torch's download names no time of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _move(path: Path, target: Path) -> None:
    try:
        path.replace(target)
    except OSError:
        if not target.exists():  # else another process was faster, and its hash was checked as well
            raise


def _missing(weight: Weight, reason: str) -> FileNotFoundError:
    looked = ", ".join(map(str, _candidates(weight)))
    if not weights_dir():
        looked += f" ({WEIGHTS_VARIABLE} is not set)"
    elif weight.is_pack:
        looked += f" (packs in {WEIGHTS_VARIABLE}: {', '.join(path.name for path in _own_packs()) or 'none'})"
    return FileNotFoundError(
        f"the weights {weight.name!r} of {weight.source} are missing: looked for {looked}; {reason}. Put "
        f"{weight.files[-1]} ({weight.licence}) into the folder that {WEIGHTS_VARIABLE} names or into "
        f"{cache_dir()}"
    )
