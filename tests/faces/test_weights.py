"""Where third-party weights are found, and what is said when they are not."""

from pathlib import Path

import pytest

from rpf_lightning.faces.weights import alexnet_file, insightface_pack, weights_dir


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    return tmp_path / "insightface" / "models"


def test_folder_comes_from_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    assert weights_dir() == tmp_path
    monkeypatch.setenv("RPF_WEIGHTS_DIR", "")
    assert weights_dir() is None


def test_features_file_goes_before_the_whole_network(tmp_path: Path, models: Path) -> None:
    (tmp_path / "alexnet-owt-7be5be79.pth").touch()
    assert alexnet_file() == tmp_path / "alexnet-owt-7be5be79.pth"
    (tmp_path / "alexnet_features.pth").touch()
    assert alexnet_file() == tmp_path / "alexnet_features.pth"


def test_explicit_file_that_is_missing_is_not_replaced(tmp_path: Path, models: Path) -> None:
    (tmp_path / "alexnet_features.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"mine\.pth"):
        alexnet_file(str(tmp_path / "mine.pth"))


def test_default_pack_is_buffalo_l(models: Path) -> None:
    for name in ("antelopev2", "buffalo_l", "mbf"):
        (models / name).mkdir(parents=True)
    assert insightface_pack() == models / "buffalo_l"
    assert insightface_pack("mbf") == models / "mbf"


def test_only_pack_is_taken_without_a_name(models: Path) -> None:
    (models / "mbf").mkdir(parents=True)
    (models / "readme.txt").touch()  # not a pack
    assert insightface_pack() == models / "mbf"


def test_two_packs_and_no_default_are_not_guessed(models: Path) -> None:
    for name in ("antelopev2", "mbf"):
        (models / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"buffalo_l.*packs there: antelopev2, mbf"):
        insightface_pack()


def test_missing_named_pack_is_not_replaced_by_the_only_one(models: Path) -> None:
    (models / "mbf").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as caught:
        insightface_pack("antelopev2")
    text = str(caught.value)
    parts = ("'antelopev2'", str(models / "antelopev2"), "packs there: mbf", "non-commercial")
    for part in (*parts, "identity_weight: 0"):
        assert part in text


def test_without_the_variable_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RPF_WEIGHTS_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match="RPF_WEIGHTS_DIR is not set"):
        insightface_pack()
