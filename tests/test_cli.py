"""The tree of commands: which words it takes and what it says of others; the commands have tests of their own."""

import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from rpf_lightning.cli import COMMANDS, LIGHTNING, main
from rpf_lightning.command_options import parser_of, read


def make(
    photo: str | None = None,
    *,
    out: str,
    batch_size: int = 8,
    methods: list[str] | None = None,
    fast: bool = False,
    mask: bool = True,
    lpips: bool | None = None,
    from_: str | None = None,
) -> None:
    """Make something.

    Args:
        photo: The photo.
        out: The file.
        batch_size: Photos per step.
        methods: What is compared.
        fast: Whether it hurries.
        mask: Whether there is a mask.
        lpips: Whether LPIPS is measured.
        from_: Where it starts.

    Raises:
        ValueError: Never.
    """


def fails(capsys, *words):
    with pytest.raises(SystemExit, match="2"):
        main(list(words))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("a.png --out b", {"photo": "a.png", "out": "b"}),
        ("--out=b --batch_size 2", {"out": "b", "batch_size": 2}),
        ("--out b --fast a.png", {"photo": "a.png", "out": "b", "fast": True}),
        ("--out b --fast false --no_mask", {"out": "b", "fast": False, "mask": False}),
        ("--out b --lpips --no_fast", {"out": "b", "lpips": True, "fast": False}),
        ("--out b --method c a.png", {"photo": "a.png", "out": "b", "methods": ["c"]}),
        ("--method c --method=d:e=f --out b", {"out": "b", "methods": ["c", "d:e=f"]}),
        ("--methods 1 null --methods [x] --out b", {"out": "b", "methods": ["1", "null", "[x]"]}),
        ("--out 007 --from -1", {"out": "007", "from_": "-1"}),
    ],
)
def test_words_become_arguments(text, given):
    parser = parser_of(make, "rpf make", "make something", config=False)
    assert read(parser, text.split(), False, {}) == ([], {"photo": None, **given})


def test_help_has_an_entry_per_option_and_nothing_else():
    text = parser_of(make, "rpf make", "make something", config=False).format_help()
    assert text.splitlines()[:3] == ["usage: rpf make [photo] [options]", "", "make something"]
    entries = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    assert entries == [
        "photo", "-h, --help", "--out OUT", "--batch_size BATCH_SIZE", "--method METHOD", "--fast", "--no_mask",
        "--lpips", "--from FROM",
    ]  # fmt: skip
    assert "Photos per step. (default: 8)" in text
    assert "Raises" not in text


def options_in_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rpf {name} ")
    if "--device " in text:
        assert "auto is the GPU where there is one. (default: auto)" in " ".join(text.split())
    return {line.split()[0].removeprefix("--") for line in text.splitlines() if line.startswith("  --")}


def test_every_command_has_help_and_one_word_for_one_thing(capsys):
    spellings, words = {}, set()
    for name in COMMANDS.keys() - {"presets"}:
        options = options_in_help(name, capsys)
        assert not options & {"model", "workers", "csv_list"}, name
        assert name.startswith("prepare") or "landmarks" not in options  # there it is a file of them
        for option in options:
            plain = option.removeprefix("no_")
            spellings.setdefault(plain.replace("_", "").removesuffix("s"), set()).add(plain)
            words |= set(plain.split("_"))
    # whether there is a reference, which ones and how many; where to run, on how many; what is shown, and a mapping
    twice = {key for key, given in spellings.items() if len(given) > 1}
    assert twice <= {"reference", "device", "metric"}, spellings
    assert all(re.fullmatch("[a-z0-9.]+", word) for word in words)
    for word, others in {
        "dir": "directory path checkpoint weights", "out": "output outputs", "num": "n number nr", "lr": "low input",
        "workers": "worker jobs threads processes", "batch": "bs", "device": "gpu cuda", "val": "validation valid",
        "images": "photos pictures", "references": "ref refs", "model": "network net", "data": "dataset root",
        "methods": "baselines baseline", "method": "algorithm", "seed": "random",
    }.items():  # fmt: skip
        assert not words & set(others.split()), f"the word is {word}"


def test_without_torch():
    """Help and wrong arguments are told at once."""
    code = (
        "import sys\nfrom rpf_lightning.cli import main\n"
        "for words in ('--help', '--version', 'bogus', 'prepare', 'enhance --help', 'enhance a --out b --bogus', "
        "'export', 'figure portrait', 'predict --csv x', 'curriculum --dry-run'):\n"
        "    try: main(words.split())\n    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"rpf {version('rpf-lightning')}\n" in done.stdout


def test_lists_the_commands(capsys):
    main(["--help"])
    lines = [line.split("  ")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert lines == [*LIGHTNING, *COMMANDS, "--version"]
    main(["prepare", "--help"])
    assert "    verify  " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--verbose", "fit"], ["bogus"], []])
def test_names_the_commands_where_none_is_first(words, capsys):
    said = fails(capsys, *words)
    assert said.startswith(
        f"rpf: error: expected a command first, got {words[0] if words else 'none'}: one of fit,"
    )
    assert fails(capsys, "prepare", "bogus").endswith("got bogus: one of celeba-hq, faces, verify\n")


def test_options_of_lightning_take_hyphens_and_values_keep_theirs(monkeypatch):
    calls = []
    monkeypatch.setattr("rpf_lightning.training.lightning_cli", calls.append)
    main(["fit", "--ckpt-path", "a-b", "--model.init-args.learning-rate=1e-3", "--x.y+=a-b", "c-d"])
    assert calls == [
        ["fit", "--ckpt_path", "a-b", "--model.init_args.learning_rate=1e-3", "--x.y+=a-b", "c-d"]
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict --csv faces.csv --model m --out o", "--csv is rpf enhance --aligned --csv LIST"),
        ("enhance a.png --out b --model m", "--model m; it is --model_dir now"),
        ("figure mask --out b --model=m", "--model=m; it is --model_dir now"),
        ("evaluate --out b --isc-pack x", "--isc_pack x; it is --pack now"),
        ("export a --out b --lr-side 32", "--lr_side 32; it is --lr_size now"),
        ("evaluate --out b --landmarks x", "--landmarks x; it is --landmark_model now"),
        ("prepare faces --out b --images i --workers 2", "--workers 2; it is --num_workers now"),
        ("enhance a.png --out b --bogus", "unrecognized arguments: --bogus\n"),
    ],
)
def test_says_what_replaced_an_option(words, message, capsys):
    assert message in fails(capsys, *words.split())


def test_curriculum_takes_one_curriculum_and_any_number_of_overlays(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "rpf_lightning.curriculum.run_curriculum", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    main([
        "curriculum", "--trainer.max-epochs", "1", "--config", "c.yaml", "--only", "a", "b,c", "--config=o.yaml",
        "--from", "d", "--only", "e", "--data.root=x", "--dry-run", "--config", "p.yaml", "--model.a", "-1",
    ])  # fmt: skip
    options = ["--config", "o.yaml", "--config", "p.yaml", "--trainer.max_epochs", "1", "--data.root=x"]
    options += ["--model.a", "-1"]
    assert calls == [(("c.yaml", options, None, True), {"only": ["a", "b,c", "e"], "start": "d"})]


def test_a_curriculum_that_cannot_begin_says_so_in_a_line(tmp_path, capsys):
    command = f"curriculum --config demo/curriculum.yaml --dry-run --model-dir {tmp_path}/m".split()
    for words, message in [
        ([*command, "--trainer.nothing", "1"], "nothing"),
        ([*command, "--only", "block9"], "'block9' names no fit"),
        (["curriculum", "--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(words)
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert said.startswith("rpf curriculum: error: ")
        assert message in said
        assert "Traceback" not in said


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_consoles_that_lack_letters(encoding: str) -> None:
    """What a console cannot show is escaped, on both streams."""
    code = "from rpf_lightning.cli import main; import sys; main(['--version']); print('结果é'); "
    code += "print('结果é', file=sys.stderr); main(['结果é'])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        check=False,
    )
    shown = "结果é".encode(encoding, "backslashreplace")
    assert run.returncode == 2, run.stderr
    assert run.stdout.splitlines()[-1] == shown
    assert run.stderr.count(shown) == 2


def closed_early(words: str, code: str = "", **environment: str) -> tuple[int, str]:
    """The exit code and stderr of a command whose output's reader leaves at once, as `head -0` would."""
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom rpf_lightning.cli import main; main({words.split()!r})"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    os.close(writer)
    return run.returncode, run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["presets", "--help", "--version", "enhance --help", "summary --scale 2"])
def test_a_reader_who_leaves_is_no_error(words: str, unbuffered: str) -> None:
    code, said = closed_early(words, PYTHONUNBUFFERED=unbuffered)
    assert said == ""
    assert code in (141, 0 if words == "enhance --help" else 141)  # argparse swallows a write that fails


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_other_pipes_that_break_are_errors() -> None:
    """Of a process that loads images, say: nothing was done, so it is told."""
    code = "import os; from rpf_lightning import presets\n"
    code += "def broken(*_): raise BrokenPipeError('the loader ended')\npresets.list_presets = broken"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom rpf_lightning.cli import main; main(['presets'])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "BrokenPipeError: the loader ended" in run.stderr
