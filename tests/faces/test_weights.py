"""Where third-party weights are found, how they are downloaded, and what is said when they are not there."""

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rpf_lightning.faces import weights
from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.faces.detection import FaceDetector
from rpf_lightning.faces.parsing import BiSeNetParser
from rpf_lightning.faces.weights import (
    WEIGHTS,
    Weight,
    alexnet_file,
    cache_dir,
    insightface_pack,
    weight_file,
    weights_dir,
)
from rpf_lightning.losses.perceptual_loss import AlexNetFeatures
from rpf_lightning.metrics import LPIPS

SINGLE = ["alexnet", "bisenet", "s3fd", "fan"]
CONTENT = bytes(range(256)) * 3000  # three chunks
Publish = Callable[..., Weight]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`RPF_WEIGHTS_DIR`."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(folder))
    return folder


@pytest.fixture
def models(own: Path) -> Path:
    return own / "insightface" / "models"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`RPF_CACHE_DIR`, not made yet."""
    monkeypatch.setenv("RPF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`, or half of it."""

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        if self.path == "/absent":
            self.send_error(404)
            return
        if self.path == "/silent":
            time.sleep(3)
            return
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path == "/broken" else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.requests = CONTENT, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def publish(server: ThreadingHTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish(name)` puts the address of the local server into the table and allows downloads."""
    monkeypatch.delenv("RPF_OFFLINE")
    monkeypatch.delenv("RPF_WEIGHTS_DIR", raising=False)

    def put(
        name: str = "bisenet", content: bytes = CONTENT, path: str = "/file", sha256: str | None = None
    ) -> Weight:
        server.content = content
        url = f"http://127.0.0.1:{server.server_port}{path}"
        weight = replace(WEIGHTS[name], url=url, sha256=sha256 or hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(WEIGHTS, name, weight)
        return weight

    return put


def pack_archive() -> bytes:
    """A zip of files without a folder, as insightface's packs are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("det_10g.onnx", "w600k_r50.onnx"):
            archive.writestr(name, name.encode())
    return buffer.getvalue()


def left(folder: Path) -> list[str]:
    """All files below a folder, temporary ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# Places


def test_own_folder_comes_from_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    assert weights_dir() == tmp_path
    monkeypatch.setenv("RPF_WEIGHTS_DIR", "")
    assert weights_dir() is None


def test_cache_comes_from_variables_or_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("RPF_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("RPF_CACHE_DIR", "")
    assert cache_dir() == tmp_path / "xdg" / "rpf-lightning"
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache_dir() == tmp_path / "local" / "rpf-lightning"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))  # HOME on Windows
    assert cache_dir() == tmp_path / "home" / ".cache" / "rpf-lightning"


def test_tests_have_a_cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert cache_dir().is_relative_to(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("name", SINGLE)
def test_order_of_places(name: str, own: Path, cache: Path, tmp_path: Path) -> None:
    file = WEIGHTS[name].files[-1]
    make(cache / file)
    assert weight_file(name) == cache / file
    make(own / file)
    assert weight_file(name) == own / file
    make(tmp_path / "mine.pth")
    assert weight_file(name, tmp_path / "mine.pth") == tmp_path / "mine.pth"
    assert weight_file(name, str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"


def test_cache_serves_without_the_variable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RPF_WEIGHTS_DIR", raising=False)
    make(cache / "parsing_bisenet.pth")
    assert weight_file("bisenet") == cache / "parsing_bisenet.pth"


def test_features_file_goes_before_the_whole_network(own: Path) -> None:
    make(own / "alexnet-owt-7be5be79.pth")
    assert alexnet_file() == own / "alexnet-owt-7be5be79.pth"
    make(own / "alexnet_features.pth")
    assert alexnet_file() == own / "alexnet_features.pth"


def test_folder_is_no_file(own: Path) -> None:
    (own / "alexnet_features.pth").mkdir()
    make(own / "alexnet-owt-7be5be79.pth")
    assert alexnet_file() == own / "alexnet-owt-7be5be79.pth"


def test_explicit_file_that_is_missing_is_not_replaced(own: Path, tmp_path: Path) -> None:
    make(own / "alexnet_features.pth")
    with pytest.raises(FileNotFoundError, match=r"mine\.pth.*'alexnet'"):
        alexnet_file(str(tmp_path / "mine.pth"))


@pytest.mark.parametrize("name", SINGLE)
def test_missing_file_names_file_places_and_licence(name: str, own: Path, cache: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        weight_file(name)
    weight, text = WEIGHTS[name], str(caught.value)
    places = [str(folder / file) for folder in (own, cache) for file in weight.files]
    for part in (*places, "RPF_WEIGHTS_DIR", weight.licence, weight.url, "RPF_OFFLINE is set"):
        assert part in text
    assert "_weight: 0" not in text  # the losses say that; metrics and preparation have no such switch
    assert not cache.exists()


# Packs


def test_default_pack_is_buffalo_l(models: Path) -> None:
    make(*(models / name / "x.onnx" for name in ("antelopev2", "buffalo_l", "mbf")))
    assert insightface_pack() == models / "buffalo_l"
    assert insightface_pack("mbf") == models / "mbf"


@pytest.mark.parametrize("name", [None, ""])
def test_only_pack_is_taken_without_a_name(models: Path, cache: Path, name: str | None) -> None:
    make(models / "mbf" / "x.onnx", cache / "insightface" / "models" / "buffalo_l" / "x.onnx")
    make(models / "readme.txt", models / ".buffalo_l.abc" / "download")  # no packs
    assert insightface_pack(name) == models / "mbf"


def test_pack_in_the_cache(models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = cache / "insightface" / "models"
    make(models / "antelopev2" / "x.onnx", models / "mbf" / "x.onnx")
    make(cached / "buffalo_l" / "x.onnx", cached / "mbf" / "x.onnx", cached / "other" / "x.onnx")
    assert insightface_pack() == cached / "buffalo_l"
    assert insightface_pack("buffalo_l") == cached / "buffalo_l"
    assert insightface_pack("other") == cached / "other"
    assert insightface_pack("mbf") == models / "mbf"
    monkeypatch.delenv("RPF_WEIGHTS_DIR")
    assert insightface_pack() == cached / "buffalo_l"


def test_only_pack_in_the_cache_is_not_taken_without_a_name(own: Path, cache: Path) -> None:
    make(cache / "insightface" / "models" / "mbf" / "x.onnx")
    with pytest.raises(FileNotFoundError, match="'buffalo_l'"):
        insightface_pack()


@pytest.mark.parametrize("name", [None, ""])
def test_two_packs_and_no_default_are_not_guessed(models: Path, name: str | None) -> None:
    make(*(models / name / "x.onnx" for name in ("antelopev2", "mbf")))
    with pytest.raises(FileNotFoundError, match=r"buffalo_l.*packs in RPF_WEIGHTS_DIR: antelopev2, mbf"):
        insightface_pack(name)


def test_missing_named_pack_is_not_replaced_by_the_only_one(
    models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RPF_OFFLINE")  # there is no download of another pack
    make(models / "mbf" / "x.onnx")
    with pytest.raises(FileNotFoundError) as caught:
        insightface_pack("antelopev2")
    text = str(caught.value)
    places = [str(models / "antelopev2"), str(cache / "insightface" / "models" / "antelopev2")]
    parts = (*places, "'antelopev2'", "packs in RPF_WEIGHTS_DIR: mbf", "only pack that is downloaded")
    for part in (*parts, "non-commercial"):
        assert part in text


def test_without_the_variable_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RPF_WEIGHTS_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"RPF_WEIGHTS_DIR is not set\); RPF_OFFLINE is set"):
        insightface_pack()


# Downloads


@pytest.mark.parametrize("name", SINGLE)
def test_download(
    name: str, publish: Publish, server: ThreadingHTTPServer, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = publish(name)
    file = weight.files[-1]
    assert weight_file(name) == cache / file
    assert (cache / file).read_bytes() == CONTENT
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == (  # what, from whom, how large, under which terms
        f"downloading the weights {name!r} of {weight.source}, {weight.size_mb} MB ({weight.licence}): {weight.url} "
        f"to {cache / file}"
    )
    assert "100%" in printed.err
    assert printed.out == ""
    assert weight_file(name) == cache / file
    assert len(server.requests) == 1  # the second time from the cache
    assert left(cache) == [f".{file}.downloaded.json", file]


def test_own_file_is_neither_hashed_nor_downloaded(
    publish: Publish, server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "parsing_bisenet.pth").write_bytes(b"my own")
    assert weight_file("bisenet") == tmp_path / "parsing_bisenet.pth"
    assert server.requests == []


def test_a_silent_server_is_given_up(publish: Publish, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpf_lightning.faces.weights.SILENCE", 0.2)
    publish(path="/silent")
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded: .*timed out"):
        weight_file("bisenet")
    assert time.monotonic() - start < 2
    assert left(cache) == []
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["bisenet", "buffalo_l"])
def test_wrong_hash(name: str, publish: Publish, cache: Path) -> None:
    content = pack_archive()
    weight = publish(name, content=content, sha256="0" * 64)
    with pytest.raises(ValueError, match="invalid hash value") as caught:
        insightface_pack() if name == "buffalo_l" else weight_file(name)
    for part in (weight.url, "0" * 64, hashlib.sha256(content).hexdigest()):
        assert part in str(caught.value)
    assert left(cache) == []
    assert [path.name for path in cache.glob("insightface/models/*")] == []


def check_unreachable(weight: Weight, reason: str, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        insightface_pack() if weight.is_pack else weight_file(weight.name)
    text = str(caught.value)
    place = str(cache / weight.files[-1])
    for part in (place, weight.url, "could not be downloaded", "RPF_WEIGHTS_DIR", weight.licence):
        assert part in text
    assert left(cache) == []


@pytest.mark.parametrize("name", ["bisenet", "buffalo_l"])
def test_answer_that_is_no_file(name: str, publish: Publish, cache: Path) -> None:
    check_unreachable(publish(name, path="/absent"), "404", cache)


def test_half_a_file(publish: Publish, cache: Path) -> None:
    weight = publish(path="/broken")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(weight.url)):  # by release of Python
        weight_file("bisenet")
    assert left(cache) == []


@pytest.mark.parametrize("name", ["alexnet", "buffalo_l"])
def test_refused_connection(
    name: str, publish: Publish, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        weight = replace(publish(name), url=f"http://127.0.0.1:{unused.getsockname()[1]}/file")
        monkeypatch.setitem(WEIGHTS, name, weight)
        check_unreachable(weight, "refused.*RPF_WEIGHTS_DIR", cache)


def test_garbled_answer(publish: Publish, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.wfile.write(b"what?\r\n\r\n"))
    check_unreachable(publish(), "what", cache)


def test_cache_that_cannot_be_written(publish: Publish, cache: Path) -> None:
    weight = publish()
    cache.touch()  # a file where the folder should be
    with pytest.raises(FileNotFoundError, match=re.escape(weight.url)):
        weight_file("bisenet")


@pytest.mark.parametrize("name", ["bisenet", "buffalo_l"])
@pytest.mark.parametrize("value", ["1", "yes"])
def test_offline(
    name: str, value: str, publish: Publish, server: ThreadingHTTPServer, cache: Path, monkeypatch
) -> None:
    weight = publish(name)
    monkeypatch.setenv("RPF_OFFLINE", value)
    with pytest.raises(FileNotFoundError, match="RPF_OFFLINE is set") as caught:
        insightface_pack() if name == "buffalo_l" else weight_file(name)
    assert weight.licence in str(caught.value)
    assert server.requests == []
    assert not cache.exists()


@pytest.mark.parametrize("value", ["", "0"])
def test_offline_is_off(value: str, publish: Publish, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish()
    monkeypatch.setenv("RPF_OFFLINE", value)
    assert weight_file("bisenet") == cache / "parsing_bisenet.pth"


@pytest.mark.parametrize("name", [None, "buffalo_l"])
def test_pack_is_downloaded_and_unpacked(
    name: str | None, publish: Publish, server: ThreadingHTTPServer, cache: Path
) -> None:
    publish("buffalo_l", content=pack_archive())
    folder = cache / "insightface" / "models" / "buffalo_l"
    assert insightface_pack(name) == folder
    record = folder.with_name(".buffalo_l.downloaded.json")
    assert left(cache) == sorted(
        str(file.relative_to(cache)) for file in (folder / "det_10g.onnx", folder / "w600k_r50.onnx", record)
    )
    assert (folder / "w600k_r50.onnx").read_bytes() == b"w600k_r50.onnx"
    assert sorted(folder.parent.iterdir()) == [record, folder]
    assert insightface_pack(name) == folder
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["bisenet", "buffalo_l"])
def test_nothing_is_at_its_place_before_it_is_whole(
    name: str, publish: Publish, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cache / publish(name, content=pack_archive()).files[-1]
    seen = []
    monkeypatch.setattr(weights, "_move", lambda path, place: seen.append((path, place, target.exists())))
    weight_file(name)
    (path, place, there), *more = seen
    assert (place, there, more) == (target, False, [])
    assert path.parent.parent == target.parent  # the same file system
    assert path.parent.name.startswith(".")  # no pack


@pytest.mark.parametrize("name", ["bisenet", "buffalo_l"])
def test_another_process_may_be_faster(
    name: str, publish: Publish, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cache / publish(name, content=pack_archive()).files[-1]
    move = weights._move

    def overtaken(path: Path, place: Path) -> None:
        make(target / "theirs.onnx" if path.is_dir() else target)
        move(path, place)

    monkeypatch.setattr(weights, "_move", overtaken)
    assert weight_file(name) == target
    assert len(left(cache)) == 2


@pytest.mark.parametrize("name", ["bisenet", "buffalo_l"])
def test_a_download_is_hashed_again_where_its_time_changed(
    name: str, publish: Publish, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cache / publish(name, content=pack_archive()).files[-1]
    assert weight_file(name) == target
    file = target / "w600k_r50.onnx" if target.is_dir() else target
    content, hashed = file.read_bytes(), list[Path]()
    hash_of = weights._hash_of
    monkeypatch.setattr(weights, "_hash_of", lambda path: hashed.append(path) or hash_of(path))
    assert weight_file(name) == target
    assert hashed == []
    os.utime(file, ns=(1, 1))  # copied, say
    assert weight_file(name) == target
    assert file in hashed
    hashed.clear()
    assert weight_file(name) == target
    assert hashed == []
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])  # of the same size
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{re.escape(str(file))} is not what was downloaded any more"):
            weight_file(name)
    file.unlink()
    if target.is_dir():
        with pytest.raises(ValueError, match="it is missing"):
            weight_file(name)
        shutil.rmtree(target)
    assert weight_file(name) == target  # downloaded again
    assert file.read_bytes() == content
    assert weight_file(name) == target


def test_a_broken_record_is_named(publish: Publish, cache: Path) -> None:
    target = cache / publish("bisenet").files[-1]
    weight_file("bisenet")
    for content in ("{", "[]", '{".": 1}'):
        target.with_name(f".{target.name}.downloaded.json").write_text(content)
        with pytest.raises(ValueError, match=r"\.downloaded\.json: expected what was downloaded"):
            weight_file("bisenet")


# The table


def test_table() -> None:
    assert list(WEIGHTS) == [*SINGLE, "buffalo_l"]
    for name, weight in WEIGHTS.items():
        assert weight.name == name
        assert re.fullmatch("[0-9a-f]{64}", weight.sha256)
        assert weight.url.startswith("https://")
        for prefix in re.findall(r"-([0-9a-f]{8,10})\.pth", weight.url):  # torch.hub's convention
            assert weight.sha256.startswith(prefix)
        assert weight.is_pack is (name == "buffalo_l")


def test_docs_have_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    for weight in WEIGHTS.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{weight.name}` "))
        for part in (weight.url, f" {weight.size_mb} MB ", *(f"`{file}" for file in weight.files)):
            assert part in row
        assert f"| `{weight.name}` | `{weight.sha256}` |" in page


def test_importing_reads_and_writes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, os\n"
        "def watch(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'urllib.Request'):\n"
        "        raise SystemExit(f'{event} {args}')\n"
        "sys.addaudithook(watch)\n"
        "import rpf_lightning.faces.weights, rpf_lightning.faces.arcface\n"
        "import rpf_lightning.losses.perceptual_loss, rpf_lightning.metrics.lpips_network\n"
        f"assert not os.path.exists({str(tmp_path / 'cache')!r})\n"
    )
    environment = {"RPF_CACHE_DIR": str(tmp_path / "cache"), "RPF_OFFLINE": "0"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02}q\x00."]
)
@pytest.mark.parametrize(
    ("file", "build"),
    [
        ("insightface/models/tiny/a.onnx", FaceDetector),
        ("insightface/models/tiny/a.onnx", ArcFace),
        ("parsing_bisenet.pth", BiSeNetParser),
        ("alexnet_features.pth", AlexNetFeatures),
        ("alexnet_features.pth", LPIPS),
    ],
)
def test_broken_files_are_named(own: Path, file: str, build: Callable[[], object], content: bytes) -> None:
    (own / file).parent.mkdir(parents=True, exist_ok=True)
    (own / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"expected|holds no ONNX file") as caught:
        build()
    assert str((own / file).parent if isinstance(caught.value, FileNotFoundError) else own / file) in str(
        caught.value
    )
