"""`Codec`: images, labels and names through the native codec and back; what is chosen, and why."""

import threading

import numpy as np
import pytest
import torch

from coding import ZlibEngine, trained, use
from helpers import SHAPE, flow_of, images
from mixerflow import Codec
from mixerflow.compression import Archive, choice
from mixerflow.compression.engine import Block
from mixerflow.compression.layout import HEAD
from mixerflow.compression.work import in_order
from mixerflow.errors import CheckpointError, ConfigError, DataError, MixerFlowError, ResourceError
from mixerflow.evaluate import class_log_probs
from mixers import mixer


@pytest.fixture(scope="module")
def flow():
    return flow_of().eval()


@pytest.fixture(scope="module")
def by_class():
    model = mixer(layers=2, flow_layers=2, hidden=8, patch=2, norm="none", classes=3)
    flow = flow_of(model).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("codec"))


def line_of(work, kind=MixerFlowError):
    with pytest.raises(kind) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_labels_and_names_through_the_native_codec(flow):
    given = images(70)
    labels, names = np.arange(70) % 5, [f"a/{n}.png" for n in range(70)]
    codec = Codec(flow, block=30, threads=2)
    data = codec.encode(given.pixels, labels, names)
    with Archive(data) as archive:
        assert [head.images for head in archive.index.blocks] == [23, 23, 24]
    found = codec.decode(data, 20, 50)
    assert np.array_equal(found.images, given.pixels[20:50]) and found.images.dtype == np.uint8
    assert np.array_equal(found.labels, labels[20:50]) and found.names == tuple(names[20:50])


def test_threads_and_memory_maps_change_no_byte(flow, tmp_path):
    given = images(90)
    np.save(tmp_path / "x.npy", given.pixels)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one = Codec(flow, block=20, threads=1).encode(given.pixels)
    totals = Codec(flow, block=20, threads=3).compress(mapped, tmp_path / "x.mfa")
    assert (tmp_path / "x.mfa").read_bytes() == one and totals.size == len(one)
    assert (totals.images, totals.blocks, totals.k, totals.plain) == (90, 5, choice.USUAL, 0)
    assert totals.bits_per_dim == 8 * len(one) / (90 * 16) and totals.for_images == len(one)


def test_floats_of_a_tensor_are_refused_and_its_integers_taken(flow):
    codec, pixels = Codec(flow), torch.from_numpy(images(5).pixels)
    assert np.array_equal(codec.decode(codec.encode(pixels)).images, pixels)
    assert "images of float32" in line_of(lambda: codec.encode(pixels.float()), DataError)
    assert "image 3 has a pixel beyond" in line_of(
        lambda: codec.encode(pixels.int() + 300 * (torch.arange(5) == 3)[:, None, None, None].int())
    )
    assert "image 0 has a pixel beyond" in line_of(lambda: codec.encode(-1 - pixels.int()))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images": np.zeros((0, *SHAPE), np.uint8)}, "give at least one image of that shape"),
        ({"images": np.zeros((3, 1, 4, 5), np.uint8)}, "the flow's are (1, 4, 4)"),
        ({"labels": np.zeros(4, int)}, "labels are int64 (4,) for 3 images"),
        ({"labels": np.zeros((3, 2), int)}, "give integers (N,) or floats (N, K)"),
        ({"names": ["a", "b"]}, "2 names for 3 images"),
    ],
)
def test_what_does_not_fit(changes, line, flow):
    given = {"images": images(3).pixels} | changes
    assert line in line_of(lambda: Codec(flow).encode(**given), DataError)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"k": 25}, "25: k: give 1 to 24"),
        ({"k": 0}, "0: k: give 1 to 24"),
        ({"block": 0}, "0: block: give at least 1"),
        ({"threads": 0}, "0: threads: give 1 to 1,024"),
        ({"embed": True}, "a flow has no card to put inside: embed"),
    ],
)
def test_settings_that_cannot_be(settings, line, flow):
    assert line_of(lambda: Codec(flow, **settings), ConfigError).startswith(line)


def test_the_likeliest_class_is_chosen_where_none_is_known(by_class):
    pixels = images(40, seed=3).pixels
    likeliest = class_log_probs(by_class, pixels).argmax(1).numpy()
    assert len(set(likeliest)) > 1
    codec = Codec(by_class, threads=1)
    data = codec.encode(pixels)
    with Archive(data) as archive:
        coded = archive.read(0)
    assert np.array_equal(coded.classes, likeliest) and coded.labels is None
    assert np.array_equal(codec.decode(data).images, pixels)


def test_labels_are_the_classes_and_are_stored_once(by_class):
    pixels = images(40, seed=3).pixels
    labels = np.arange(40) % 3
    codec = Codec(by_class, threads=1)
    data = codec.encode(pixels, labels)
    with Archive(data) as archive:
        assert archive.read(0).classes is None and archive.read(0).head.labels
    assert np.array_equal(codec.decode(data).images, pixels)
    partly = np.where(np.arange(40) < 20, labels, -1)
    data = codec.encode(pixels, partly)
    with Archive(data) as archive:
        coded = archive.read(0)
    likeliest = class_log_probs(by_class, pixels).argmax(1).numpy()
    assert np.array_equal(coded.classes, np.where(partly < 0, likeliest, labels))
    assert np.array_equal(codec.decode(data).labels, partly)
    data = codec.encode(pixels, labels + 1)  # 3 is no class of the flow
    assert np.array_equal(codec.decode(data).labels, labels + 1)


def test_sixteen_bits_and_vectors():
    flow = flow_of(mixer(layers=1, flow_layers=1, hidden=4, patch=2, norm="none", levels=65536))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (12, *SHAPE)).astype(np.uint16)
    vectors = rng.normal(size=(12, 3)).astype(np.float32)
    codec = Codec(flow.eval())
    found = codec.decode(codec.encode(pixels, vectors))
    assert found.images.dtype == np.uint16 and np.array_equal(found.images, pixels)
    assert np.array_equal(found.labels, vectors)


def test_an_archive_finds_its_weights_by_their_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    pixels = images(9).pixels
    data = Codec("run").encode(pixels)
    assert np.array_equal(Codec.of(data).decode(data).images, pixels)
    assert np.array_equal(Codec.of(data, run).decode(data).images, pixels)
    monkeypatch.chdir(tmp_path)
    said = line_of(lambda: Codec.of(data), CheckpointError)
    assert "weights run (SHA-256 " in said and said.endswith(
        "bring the folder run here, or name a run or a folder of these weights with weights PATH"
    )
    other = "weights/digits-affine"
    said = line_of(lambda: Codec.of(data, other), CheckpointError)
    assert said.startswith("other weights than the archive's (SHA-256 ") and other in said
    raw = Codec(run, average=False)
    said = line_of(lambda: raw.decode(data), CheckpointError)
    assert "an archive of other weights" in said


def test_the_hub_is_not_asked_because_an_archive_names_it(run, monkeypatch):
    codec = Codec(run)
    codec._held.said["name"] = "hf://somebody/else"
    monkeypatch.setattr("mixerflow.hub.fetch", lambda *_, **__: pytest.fail("asked"))
    data = codec.encode(images(3).pixels)
    said = line_of(lambda: Codec.of(data), CheckpointError)
    assert said.endswith("name them with weights hf://somebody/else")
    for name in ("", "a\0b", "a" * 5000, "/" + "b/" * 3000, "../.."):
        codec._held.said["name"] = name
        data = codec.encode(images(3).pixels)
        assert " are not here: " in line_of(lambda data=data: Codec.of(data), CheckpointError)


def test_weights_inside_are_of_16_bits_and_need_no_run(run, tmp_path):
    moved = run.rename(tmp_path / "moved")
    pixels = images(9).pixels
    codec = Codec(moved, embed=True)
    data = codec.encode(pixels)
    totals = codec.compress(pixels, tmp_path / "x.mfa")
    assert totals.weights > 1000 and totals.for_images == totals.size - totals.weights
    moved.rename(run)
    assert np.array_equal(Codec.of(data).decode(data).images, pixels)
    assert np.array_equal(Codec.of(data, run).decode(data).images, pixels)
    said = line_of(lambda: Codec.of(data, "weights/digits-affine"), CheckpointError)
    assert said.startswith("other weights than the archive's")


def test_nothing_is_there_after_an_error_and_an_older_archive_stays(flow, tmp_path):
    codec, to = Codec(flow, block=10, threads=2), tmp_path / "x.mfa"
    codec.compress(images(30).pixels, to)
    before = to.read_bytes()
    bad = images(30).pixels.astype(np.int32)
    bad[25] = 999
    assert "image 25" in line_of(lambda: codec.compress(bad, to), DataError)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.compress(images(30).pixels, to, on_progress=stop)
    assert to.read_bytes() == before and [*tmp_path.iterdir()] == [to]
    line_of(lambda: codec.compress(images(3).pixels, tmp_path), ResourceError)


def test_progress_counts_images_and_bytes(flow):
    codec, seen = Codec(flow, block=10, threads=2), []
    data = codec.encode(images(30).pixels)
    with Archive(data) as archive:
        list(codec.parts(archive, on_progress=seen.append))
        payload = sum(head.payload for head in archive.index.blocks)
    assert seen[-1] == (30, 30, payload, False)
    assert [each.whole for each in seen] == sorted(each.whole for each in seen)


def test_the_smallest_k_that_costs_little_is_chosen():
    def encode(costs):
        def coded(k):
            asked.append(k)
            bits = np.full(50, 1000 * (1 + costs.get(k, 0.0)))
            bits[48 - k // 12 :] = -1
            plain = float(costs.get(k, 0.0) == 5)
            return [Block(b"", 2, bits, {"plain": plain})] * 2

        asked.clear()
        return coded

    asked = []
    assert choice.choose_k(encode({})) == 4
    assert asked == [24, 12, 8, 6, 5, 4]
    steep = {k: 2.0 ** (8 - k) for k in range(4, 24)}  # 0.1 % at k = 18
    assert choice.choose_k(encode(steep)) == 18
    assert choice.choose_k(encode(dict.fromkeys(range(4, 24), 0.01))) == 20
    assert choice.choose_k(encode({24: 5} | steep)) == 18  # where 24 leaves the bounds
    too_few = [Block(b"", 3, np.full(3, -1.0), {"plain": 0.0})]
    assert choice.choose_k(lambda k: too_few) is None


def test_the_ends_of_blocks_are_compared_with_the_same_images_by_the_flow():
    bits = np.arange(100.0, 110.0)  # of ten images, of which the flow does not code the last two

    def encode(k, backwards):
        own = np.array(bits[::-1] if backwards else bits)
        more = 2 * own[-2:].sum()
        own[-2:] = -1
        return [Block(b"", 2, own, {"initial_bits": more})]

    measured = choice.measure(encode, 13)
    head = 8 * HEAD.size
    assert measured == choice.Measured(13, bits[:8].mean(), (109 + 108 + 100 + 101) / 2 + head)
    few = Block(b"", 3, np.array([5.0, -1, -1, -1]), {"initial_bits": 9.0})
    assert choice.measure(lambda k, backwards: [few], 16) is None  # ends in both orders


@pytest.mark.parametrize(
    ("count", "most", "block"),
    [(10_000, 10**6, 910), (1000, 10**6, 334), (500, 10**6, 500), (10_000, 100, 100)],
)
def test_blocks_are_so_large_that_their_ends_cost_little(count, most, block):
    measured = choice.Measured(16, 1000.0, 900.0)  # 0.1 % of 900 images, 0.3 % of 300
    assert measured.block(count, most) == block


def test_a_sample_is_spread_and_small(flow, monkeypatch):
    assert not len(choice.sample_places(1999))
    for count in (2000, 5000, 10**6):
        places = choice.sample_places(count)
        assert len(places) == min(200, count // 50) and places[0] == 0 and places[-1] == count - 1
        assert np.all(np.diff(places) > 0)
    use(monkeypatch)
    codec = Codec(flow, threads=2)
    pixels = np.tile(images(100).pixels, (120, 1, 1, 1))
    with Archive(codec.encode(pixels)) as archive:
        k = archive.header.k
        assert 4 <= k < 12 and len(archive.index.blocks) == 4
    assert isinstance(codec.engine(k), ZlibEngine)


def test_results_in_order_and_few_at_a_time():
    taken, lock, running, most = [], threading.Lock(), [0], [0]

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    def work(number):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.002 * (number % 3))
        with lock:
            running[0] -= 1
        return number

    for place, found in enumerate(in_order(work, items(), 3, lambda: None, lambda: None)):
        assert found == place and len(taken) <= place + 5
    assert most[0] <= 3

    def fail(number):
        raise ValueError("here")

    stopped = []
    with pytest.raises(ValueError, match="here"):
        list(in_order(fail, items(), 2, lambda: None, lambda: stopped.append(1)))
    assert stopped == [1]
