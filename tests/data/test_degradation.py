"""Degradations: golden numbers, published ranges, every step, seeds, JPEG, documentation."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rpf_lightning.data import degradation
from rpf_lightning.data.degradation import Degradation, Draw, _kernel
from rpf_lightning.model.resize import resize

KINDS = ["bicubic", "dpsr", "realistic"]
RANDOM = ["dpsr", "realistic"]
IDS = ["a", "b", "c", "d"]
PAGE = Path(__file__).parents[2] / "docs" / "degradations.md"
Y, X = np.mgrid[:64, :64]

GOLDEN_DPSR = (0.85995, 0.85995, 4.32520, 0.19197)  # sigma (2), delta, first number of the noise
# sigma (2), angle, delta, quality, first number of the noise
GOLDEN_REALISTIC = (4.42760, 12.58055, 1.67716, 2.68301, 41, -0.50620)

# The 64-pixel image of `golden_image` reduced to 4 by Pillow (BICUBIC on 32-bit float images), clamped, rounded.
GOLDEN = [
    [[39, 85, 135, 181], [70, 116, 166, 216], [103, 149, 205, 178], [134, 183, 209, 58]],
    [[0, 20, 235, 255], [0, 18, 237, 255], [21, 40, 215, 234], [236, 216, 39, 19]],
    [[117, 126, 119, 116], [126, 127, 128, 124], [119, 128, 128, 127], [116, 124, 127, 126]],
]


def golden_image() -> Tensor:
    """A ramp that wraps, squares that make bicubic overshoot, fine texture; (1, 3, 64, 64)."""
    channels = [(3 * X + 2 * Y) % 256, 255 * ((X >= 32) ^ (Y >= 48)), (7 * X * Y) % 256]
    return torch.from_numpy(np.stack(channels).astype(np.float32))[None] / 255


def made_up(batch: int = 4, side: int = 128, seed: int = 0) -> Tensor:
    """Smooth pictures, rather pale like faces, with some texture."""
    generator = torch.Generator().manual_seed(seed)
    light, colour = (torch.rand(batch, channels, 8, 8, generator=generator) for channels in (1, 3))
    smooth = F.interpolate(0.7 * light + 0.3 * colour, size=side, mode="bicubic")
    return (smooth + 0.1 * torch.randn(batch, 3, side, side, generator=generator)).clamp(0, 1)


def with_draw(kind: str, lr_size: int = 16, **fields: object) -> Degradation:
    """A degradation whose draws are a harmless one with `fields` replaced."""
    noise = torch.randn(3, lr_size, lr_size, generator=torch.Generator().manual_seed(0))
    draw = Draw((1e-3, 1e-3), 0.0, 0.0, 100, noise)._replace(**fields)
    module = Degradation(kind, lr_size)
    module.draw = lambda *_args: draw
    return module


def levels(difference: Tensor) -> float:
    """Mean absolute difference in 8-bit levels."""
    return difference.abs().mean().item() * 255


def pillow_jpeg(image: Tensor, quality: int) -> Tensor:
    """Each image of an 8-bit (B, 3, L, L) through libjpeg."""
    results = []
    for pixels in (image * 255).round().byte().permute(0, 2, 3, 1):
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
        results.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(results).permute(0, 3, 1, 2).float() / 255


def real_photos(shared: Path, number: int) -> tuple[Tensor, list[str]]:
    """The first photos of the shared subset, (number, 3, 512, 512), and their names."""
    folder = shared / "data" / "celeba_hq_subset" / "images"
    files = sorted(folder.iterdir())[:number]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, [file.stem for file in files]


def reduced(image: Tensor, side: int) -> Tensor:
    return F.interpolate(image.double(), size=side, mode="bicubic", antialias=True).clamp(0, 1).float()


# ---- bicubic


def test_bicubic_golden_numbers() -> None:
    image = golden_image()
    lr = Degradation("bicubic", 4)(image, ["x"])
    assert (lr[0] * 255).round().int().tolist() == GOLDEN
    exact = F.interpolate(image.double(), size=4, mode="bicubic", antialias=True)
    assert exact.min() < -0.01  # the squares overshoot
    assert exact.max() > 1.01
    assert (lr - exact.clamp(0, 1)).abs().max() <= 0.501 / 255


# ---- the other two against independent implementations


def test_dpsr_is_bicubic_then_blur_then_noise() -> None:
    gt, module = torch.cat([made_up(3, 64), golden_image()]), Degradation("dpsr", seed=3)
    lr = module(gt, IDS, 2)
    for image, result, name in zip(reduced(gt, 16), lr, IDS, strict=True):
        draw = module.draw(name, 2)
        blurred = scipy.ndimage.gaussian_filter(image, draw.sigma, radius=4, mode="mirror", axes=(1, 2))
        expected = torch.from_numpy(blurred) + draw.noise * draw.delta / 255
        assert (result - expected.clamp(0, 1)).abs().max() <= 0.501 / 255


@pytest.mark.parametrize("sigma", [(16.0, 16.0), (1.0, 12.0)], ids=["isotropic", "anisotropic"])
def test_realistic_is_blur_then_bicubic_then_noise_then_jpeg(sigma: tuple[float, float]) -> None:
    """With the kernel of the sources: 41 samples of a Gaussian with covariance R diag(sigma^2) R^T."""
    gt = made_up(1, 512)
    gt[:, :, :256, :256], gt[:, :, 256:, 256:] = 0, 1  # edges at which bicubic overshoots
    angle, delta, quality = (0.6 if sigma[0] != sigma[1] else 0.0), 12.0, 70
    module = with_draw("realistic", sigma=sigma, angle=angle, delta=delta, quality=quality)
    noise = module.draw("x").noise

    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    grid = np.stack(np.meshgrid(np.arange(-20, 21), np.arange(-20, 21)), axis=-1)  # x, y
    kernel = scipy.stats.multivariate_normal([0, 0], rotation @ np.diag(np.square(sigma)) @ rotation.T).pdf(
        grid
    )
    kernel /= kernel.sum()
    blurred = np.stack([scipy.ndimage.correlate(channel, kernel, mode="mirror") for channel in gt[0].numpy()])
    noisy = reduced(torch.from_numpy(blurred)[None], 16) + noise * delta / 255
    before_jpeg = (noisy.clamp(0, 1) * 255).round() / 255
    expected = pillow_jpeg(before_jpeg, quality)

    module._jpeg = lambda lr, _draws: lr
    assert (module(gt, ["x"]) - before_jpeg).abs().max() < 1.01 / 255  # a level where rounding falls apart
    assert levels(module(gt, ["x"]) - before_jpeg) < 0.01
    del module._jpeg
    assert levels(module(gt, ["x"]) - expected) < 0.4 * levels(before_jpeg - expected)


@pytest.mark.parametrize("quality", [30, 90])
def test_jpeg_is_close_to_libjpeg(quality: int) -> None:
    """The change that it makes is about libjpeg's; they filter the colours differently."""
    lr = Degradation("bicubic")(made_up(16), [str(i) for i in range(16)])
    draw = with_draw("realistic", quality=quality).draw("x")
    ours, theirs = Degradation._jpeg(lr, [draw] * 16) - lr, pillow_jpeg(lr, quality) - lr
    assert levels(ours - theirs) < 4
    assert levels(ours) == pytest.approx(levels(theirs), rel=0.1)
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.85


# ---- ranges


@pytest.mark.parametrize(
    ("kind", "sigma", "delta", "quality"),
    [("dpsr", (0.3, 1.2), (0, 15), (0, 0)), ("realistic", (0, 16), (0, 20), (30, 99))],
)
def test_parameters_fill_their_ranges(
    kind: str, sigma: tuple[float, float], delta: tuple[float, float], quality: tuple[int, int]
) -> None:
    module = Degradation(kind)
    draws = [module.draw(f"photo {i}") for i in range(1000)]
    columns = zip(*((*draw.sigma, draw.delta, draw.quality) for draw in draws), strict=True)
    for values, (low, high) in zip(columns, (sigma, sigma, delta, quality), strict=True):
        margin = 0.02 * (high - low)
        assert low <= min(values) <= low + margin
        assert high - margin <= max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert all(type(draw.quality) is int for draw in draws)

    rotated = [draw for draw in draws if draw.sigma[0] != draw.sigma[1]]
    assert all(draw.angle == 0 for draw in draws if draw.sigma[0] == draw.sigma[1])
    if kind == "dpsr":
        assert not rotated
    else:
        assert 0.45 < len(rotated) / len(draws) < 0.55
        angles = [draw.angle for draw in rotated]
        assert 0 <= min(angles) < 0.1
        assert math.pi - 0.1 < max(angles) < math.pi
        sigmas = np.array([draw.sigma for draw in rotated])
        assert abs(np.corrcoef(sigmas.T)[0, 1]) < 0.15
    noise = torch.stack([draw.noise for draw in draws])
    assert noise.shape == (1000, 3, 16, 16)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


# ---- sides


def test_a_gt_of_another_side_gives_nearly_the_same_lr() -> None:
    gt, module = made_up(4, 512), Degradation("realistic")
    full = module(gt, IDS)
    assert all(levels(module(reduced(gt, side), IDS) - full) < 1 for side in (256, 128))
    assert levels(Degradation("bicubic")(gt, IDS) - full) > 4
    larger = made_up(1, 1024)
    assert torch.equal(module(larger, ["x"]), module(resize(larger, 512).clamp(0, 1), ["x"]))


@pytest.mark.parametrize("sigma", [(0.0, 0.0), (0.0, 16.0)])
@pytest.mark.parametrize("side", [32, 512])
def test_the_narrowest_blur_is_finite(side: int, sigma: tuple[float, float]) -> None:
    kernel = _kernel(with_draw("realistic", sigma=sigma, angle=0.55).draw("x"), side)
    assert kernel.isfinite().all()
    assert kernel.sum() == pytest.approx(1)
    if sigma[1] < 1:
        assert kernel.max() > 0.97  # no blur
    else:  # a rotated line: without a lower bound on sigma its samples miss the ridge and little is left
        assert kernel.max() < (0.75 if side == 32 else 0.2)


def test_a_larger_gt_is_not_reduced_below_the_lr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degradation, "REALISTIC_SIDE", 32)
    monkeypatch.setattr(Degradation, "_jpeg", staticmethod(lambda lr, _draws: lr))
    gt = made_up(1)
    lr = with_draw("realistic", 64)(gt, ["x"])
    assert levels(lr - Degradation("bicubic", 64)(gt, ["x"])) < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lr_size", [1, 4])
def test_the_smallest_sides(kind: str, lr_size: int) -> None:
    lr = Degradation(kind, lr_size)(made_up(4, 2 * lr_size), IDS)
    assert lr.shape == (4, 3, lr_size, lr_size)
    assert lr.isfinite().all()


def test_a_finished_lr_is_only_blurred_and_noised() -> None:
    gt = made_up()
    lr = reduced(gt, 16)
    assert torch.equal(Degradation("bicubic")(lr, IDS), Degradation("bicubic")(gt, IDS))
    assert torch.equal(Degradation("dpsr")(lr, IDS), Degradation("dpsr")(gt, IDS))


# ---- seeds


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_does_not_matter(kind: str) -> None:
    gt, module = made_up(), Degradation(kind)
    lr = module(gt, IDS, 1)
    assert torch.equal(torch.cat([module(gt[i : i + 1], IDS[i : i + 1], 1) for i in range(4)]), lr)
    order = [2, 0, 3, 1]
    assert torch.equal(module(gt[order], [IDS[i] for i in order], 1), lr[order])


@pytest.mark.parametrize("kind", RANDOM)
def test_seed_epoch_and_id_matter_and_nothing_else(kind: str) -> None:
    gt = made_up(1)
    first = Degradation(kind)(gt, ["x"])
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(Degradation(kind, seed=0)(gt, ["x"], 0), first)
    assert torch.equal(torch.get_rng_state(), state)
    others = [
        Degradation(kind)(gt, ["y"]),
        Degradation(kind)(gt, ["x"], 1),
        Degradation(kind, seed=1)(gt, ["x"]),
        Degradation(kind, seed=1)(gt, ["x"], 1),
    ]
    for i, other in enumerate(others):
        assert levels(other - first) > 1
        assert all(levels(other - another) > 1 for another in others[:i])
    mine, theirs = (Degradation(other).draw("x") for other in RANDOM)
    assert not torch.equal(mine.noise, theirs.noise)


def test_draws_do_not_change_between_versions() -> None:
    """Golden: a result must be repeatable from (kind, seed, epoch, id) later."""
    dpsr, realistic = (Degradation(kind, seed=7).draw("00042", 5) for kind in RANDOM)
    numbers = (*dpsr.sigma, dpsr.delta, dpsr.noise[0, 0, 0].item())
    assert numbers == pytest.approx(GOLDEN_DPSR, abs=1e-5)
    numbers = (*realistic.sigma, realistic.angle, realistic.delta, realistic.quality)
    assert (*numbers, realistic.noise[0, 0, 0].item()) == pytest.approx(GOLDEN_REALISTIC, abs=1e-5)


# ---- numbers of the result


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_an_8_bit_image_in_fp32(kind: str) -> None:
    gt, module = made_up(), Degradation(kind, 8)
    lr = module(gt, IDS)
    assert (lr.shape, lr.dtype) == ((4, 3, 8, 8), torch.float32)
    assert torch.equal(lr, (lr * 255).round() / 255)
    assert lr.min() >= 0
    assert lr.max() <= 1
    contrast = torch.zeros(1, 3, 64, 64)
    contrast[..., 32:] = 1
    assert [edge.item() for edge in module(contrast, ["x"]).aminmax()] == [0, 1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(gt, IDS), lr)
    assert torch.equal(module(gt.double(), IDS), lr)
    for dtype in (torch.float64, torch.float16):
        assert module(gt.to(dtype), IDS).dtype == torch.float32
    assert not module(gt.requires_grad_(), IDS).requires_grad
    assert not list(module.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_gpu_gives_the_same(kind: str) -> None:
    gt, module = made_up(), Degradation(kind)
    lr = module(gt.cuda(), IDS)
    assert lr.is_cuda
    assert levels(lr.cpu() - module(gt, IDS)) < 0.1


# ---- wrong input


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="kind must be one of bicubic, dpsr, realistic, got 'blur'"):
        Degradation("blur")
    with pytest.raises(ValueError, match="lr_size must be at least 1, got 0"):
        Degradation("bicubic", 0)
    with pytest.raises(ValueError, match=r"gt must be .* floating point, got .* torch.uint8"):
        Degradation()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ["x"])
    with pytest.raises(ValueError, match="kind must be dpsr or realistic"):
        Degradation().draw("x")


@pytest.mark.parametrize(
    ("kind", "shape", "ids", "message"),
    [
        ("bicubic", (3, 64, 64), ["x"], r"gt must be \(B, 3, H, H\)"),
        ("bicubic", (1, 1, 64, 64), ["x"], r"gt must be \(B, 3, H, H\)"),
        ("bicubic", (0, 3, 64, 64), [], r"gt must be \(B, 3, H, H\)"),
        ("bicubic", (1, 3, 8, 8), ["x"], r"gt's side must be lr_size \(16\) times a power of two, got 8"),
        ("dpsr", (1, 3, 48, 48), ["x"], "times a power of two, got 48"),
        ("realistic", (1, 3, 16, 16), ["x"], r"gt's side must be above lr_size \(16\) for realistic"),
        ("dpsr", (2, 3, 64, 64), ["x"], "ids must be one name for each of the 2 samples of gt, got 1"),
        ("dpsr", (2, 3, 64, 64), "xy", "ids must be .* got 'xy'"),
    ],
)
def test_wrong_input(kind: str, shape: tuple[int, ...], ids: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Degradation(kind)(torch.zeros(shape), ids)


# ---- documentation and real photos


def test_the_picture_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.fromarray((made_up(1, 64)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save("photo.jpg")
    exec(code, {})
    assert Image.open("degradations.png").size == (8 * 128 + 9 * 2, 3 * 128 + 4 * 2)


@pytest.mark.realdata
def test_real_photos_from_another_side(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of the page; `-s` prints it."""
    photos, names = real_photos(shared, 20)
    smaller = [reduced(photos, side) for side in (256, 128, 64, 32)]

    def row(name: str, kind: str) -> list[float]:
        lr = Degradation(kind)(photos, names)
        differences = [levels(Degradation(kind)(gt, names) - lr) for gt in smaller]
        from_bicubic = levels(lr - Degradation("bicubic")(photos, names))
        print(name, *(f"{x:.2f}" for x in differences), f"from bicubic {from_bicubic:.2f}")
        assert differences == sorted(differences)
        return [*differences, from_bicubic]

    print()
    assert row("bicubic", "bicubic")[1] < 0.01
    assert row("dpsr", "dpsr")[1] < 0.01
    _, at_128, _, _, from_bicubic = row("realistic", "realistic")
    assert at_128 < 0.6
    assert from_bicubic > 9
    monkeypatch.setattr(Degradation, "_jpeg", staticmethod(lambda lr, _draws: lr))
    assert row("realistic without JPEG", "realistic")[1] < 0.06


@pytest.mark.realdata
def test_real_photos_through_jpeg(shared: Path) -> None:
    """The other table of the page; `-s` prints it."""
    photos, names = real_photos(shared, 40)
    lr = Degradation("bicubic")(photos, names)
    print()
    for quality in (30, 50, 75, 90, 99):
        draw = with_draw("realistic", quality=quality).draw("x")
        ours = (Degradation._jpeg(lr, [draw] * len(lr)).clamp(0, 1) * 255).round() / 255
        theirs = pillow_jpeg(lr, quality)
        print(quality, *(f"{levels(x):.2f}" for x in (theirs - lr, ours - lr, ours - theirs)))
        assert levels(ours - theirs) < 3
        assert levels(ours - lr) == pytest.approx(levels(theirs - lr), rel=0.1)
