"""8-bit pictures, and which file belongs to which photo."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rpf_lightning.pictures import png, result_file, results_in, stem, to_uint8


def test_values_are_rounded_and_clamped() -> None:
    values = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 7.0, -1e38, 1e38])
    expected = [0, 0, 1, 128, 255, 255, 0, 255]
    image = values.reshape(1, 2, 4).expand(3, 2, 4)
    assert to_uint8(image)[..., 1].flatten().tolist() == expected
    assert to_uint8(image).shape == (2, 4, 3)
    batch = to_uint8(image[None].repeat(2, 1, 1, 1).to(torch.float64).requires_grad_())
    assert batch.shape == (2, 2, 4, 3)
    assert batch.flags.c_contiguous
    assert to_uint8(torch.full((3, 1, 1), 0.5, dtype=torch.bfloat16)).tolist() == [[[128] * 3]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_picture(value: float) -> None:
    image = torch.full((2, 3, 4, 4), 0.5)
    image[1, 2, 3, 3] = value
    for given in (image, image[1], image.half()):
        with pytest.raises(ValueError, match="holds NaN or infinite values"):
            to_uint8(given)


def test_png_keeps_pixels_and_texts() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for given in (pixels, Image.fromarray(pixels)):
        image = Image.open(io.BytesIO(png(given, {"from": "a"})))
        assert np.array_equal(np.asarray(image), pixels)
        assert image.info == {"from": "a"}
    assert png(pixels) == png(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("a.jpg", "a"), ("sub/a.PNG", "sub/a"), ("id00002_001", "id00002_001"), ("p1.5", "p1.5"), ("a.b.webp", "a.b"),
        ("1.2/3.4", "1.2/3.4"),
    ],
)  # fmt: skip
def test_a_result_is_named_after_its_photo(photo: str, expected: str) -> None:
    assert stem(photo) == expected
    assert result_file(photo) == f"{expected}.png"


@pytest.mark.parametrize("photo", ["/a.jpg", "../a.jpg", "a/../../b.jpg", "", "."])
def test_no_result_lies_outside_of_its_folder(photo: str) -> None:
    with pytest.raises(ValueError, match="expected a relative name"):
        result_file(photo)


def test_results_are_found_in_subfolders(tmp_path: Path) -> None:
    root = tmp_path / ".runs" / "results"  # only what is hidden below it does not count
    hidden = (".hidden.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.thumbs/deep/a.png")
    for name in ("a.png", "sub/a.jpg", "sub/p1.5.png", "notes.txt", *hidden):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).touch()
    assert results_in(root) == {
        "a": root / "a.png", "sub/a": root / "sub" / "a.jpg", "sub/p1.5": root / "sub" / "p1.5.png",
    }  # fmt: skip
    (root / "a.jpeg").touch()
    with pytest.raises(ValueError, match=r"two images of one name, .*a\.jpeg and .*a\.png"):
        results_in(root)
