"""ISC by onnxruntime and numpy, landmark distances by hand, and both on real photos."""

import csv

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from rpf_lightning.faces.arcface import ArcFace, crop_face
from rpf_lightning.faces.landmarks import Found, landmark_model
from rpf_lightning.metrics import ISC, LandmarkDistance, ReferenceISC, isc, landmark_distance

OFFSETS = np.random.default_rng(0).uniform(-5, 5, (68, 2))


def onnx_cosines(path, a, b, normalise=True):
    """What onnxruntime makes of the crops in 0..255, normalised to -1..1 where the network does not do so itself."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, features = session.get_inputs()[0].name, []
    for images in (a, b):
        faces = crop_face(images).numpy() * 255
        faces = (faces - 127.5) / 127.5 if normalise else faces
        found = [session.run(None, {name: face[None].astype(np.float32)})[0][0] for face in faces]
        features.append(np.array(found, np.float64))
    a, b = (x / np.linalg.norm(x, axis=1)[:, None] for x in features)
    return (a * b).sum(1).tolist()


def test_isc_equals_onnxruntimes_cosine(make_pack):
    path = make_pack()
    torch.manual_seed(0)
    output, gt, reference = torch.rand(3, 5, 3, 64, 64) * torch.rand(3, 5, 3, 1, 1)
    output = output * 1.4 - 0.2  # leaves [0, 1]
    clamped = output.clamp(0, 1)
    own = ISC()
    other = ReferenceISC(own.network)
    for metric, image in ((own, gt), (other, reference)):
        wanted = onnx_cosines(path, clamped, image)
        assert isc(output, image, ArcFace()).tolist() == pytest.approx(wanted, abs=1e-5)
        for part in (slice(4), slice(4, 5)):
            metric.update(output[part], image[part])
        assert metric.compute().item() == pytest.approx(np.mean(wanted), abs=1e-5)
    assert own.compute() != other.compute()
    assert not own.state_dict()


def test_missing_pack_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    for metric in (ISC, ReferenceISC):
        with pytest.raises(FileNotFoundError, match="insightface"):
            metric()


def test_isc_of_equal_and_opposite_features():
    image = torch.rand(2, 3, 8, 8)
    features = torch.tensor([[1.0, 2.0], [float("nan")] * 2])
    values = isc(image, image, lambda x: features)
    assert values[0].item() == pytest.approx(1)
    assert values[1].isnan()
    metric = ISC(lambda x: features)
    metric.update(image, image)
    assert metric.compute().item() == pytest.approx(1)
    assert (metric.count.item(), metric.missing.item()) == (1, 1)


def finder(images):
    """Finds a face around the brightest pixel; none in a dark photo."""
    found = []
    for image in images:
        assert (image.dtype, image.shape[2]) == (np.uint8, 3)
        grey = image.astype(int).sum(2)
        row, column = np.unravel_index(grey.argmax(), grey.shape)
        points = np.array([column, row]) + 0.5 + OFFSETS * image[..., 2].max() / 255  # by the blue: larger
        found.append(Found(points if grey.max() > 100 else None, []))
    return found


def spots(*places, blue=1.0):
    images = torch.full((len(places), 3, 40, 40), 0.05)
    for image, place in zip(images, places, strict=True):
        if place is not None:
            image[:, place[0], place[1]] = torch.tensor([1, 1, blue])
    return images


def test_landmark_distance_in_percent_of_the_side():
    gt, pred = spots((10, 10), (20, 30), (5, 5), None), spots((13, 14), (20, 30), None, (5, 5))
    values = landmark_distance(pred * 2 - 0.05, gt, finder)  # leaves [0, 1], the brightest stays
    assert values[:2].tolist() == pytest.approx([100 * 5 / 40, 0])
    assert values[2:].isnan().all()
    metric = LandmarkDistance(finder)
    for part in (slice(3), slice(3, 4)):
        metric.update(pred[part], gt[part])
    assert metric.compute().item() == pytest.approx(100 * 5 / 40 / 2)
    assert (metric.count.item(), metric.missing.item()) == (2, 2)
    assert not metric.higher_is_better


def test_landmark_distance_is_the_mean_of_68_lengths():
    value = landmark_distance(spots((8, 8), blue=0.6), spots((8, 8)), finder).item()
    lengths = [np.hypot(*offset) * 0.4 for offset in OFFSETS]
    assert value == pytest.approx(100 * sum(lengths) / 68 / 40, rel=1e-5)


# real networks on real photos


def photos(shared, names, side=256):
    folder = shared / "data" / "celeba_hq_subset" / "images"
    pixels = [
        np.asarray(Image.open(folder / name).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        for name in names
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def people(shared, count):
    """Two photos each of so many people."""
    with (shared / "data" / "celeba_hq_subset" / "identities.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    by_person = {}
    for name, person, *_ in rows:
        by_person.setdefault(person, []).append(name)
    return [names[:2] for names in by_person.values() if len(names) > 1][:count]


@pytest.mark.weights
@pytest.mark.realdata
def test_real_isc_tells_people_apart(shared, real_weights):
    pairs = people(shared, 8)
    first, second = (photos(shared, [pair[i] for pair in pairs]) for i in (0, 1))
    network = ArcFace()
    file = real_weights / "insightface" / "models" / network.pack / network.file
    wanted = onnx_cosines(file, first, second, network.normalise)
    assert isc(first, second, network).tolist() == pytest.approx(wanted, abs=1e-3)
    same, other = ISC(network), ReferenceISC(network)
    same.update(first, second)
    other.update(first, second.roll(1, 0))
    assert same.compute() > 0.3
    assert other.compute() < 0.15


@pytest.mark.weights
@pytest.mark.realdata
def test_real_landmarks_follow_a_shifted_face(shared, real_weights):
    gt = photos(shared, [pair[0] for pair in people(shared, 4)])
    model = landmark_model(f"onnx:{real_weights / 'pfld.onnx'}")
    metric = LandmarkDistance(model)
    shifted = torch.cat([gt[:, :, :, 8:], gt[:, :, :, -1:].expand(-1, -1, -1, 8)], dim=3)
    metric.update(shifted, gt)
    assert metric.compute().item() == pytest.approx(100 * 8 / 256, abs=0.5)
    metric.update(torch.full_like(gt, 0.5), gt)
    assert (metric.count.item(), metric.missing.item()) == (4, 4)
    metric.reset()
    metric.update(gt, gt)
    assert metric.compute().item() == 0
