"""The images are the same wherever they come from, and damaged or missing ones are refused by name."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from grokutils import ConfigError, DataError, RunConfig
from grokutils.experiment import data

ROOT = Path(__file__).resolve().parent.parent
EXPRESS = RunConfig.recipe("express", per_class=20, batch_size=200)
FEW = RunConfig.recipe("paper", per_class=2, batch_size=20)
NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
THREE_WAYS_OUT = (
    "Three ways out: set GROKUTILS_DATA to a folder that holds MNIST/raw/*-ubyte; connect to the network so "
    "that it can be downloaded; or use the express recipe, whose data ships with scikit-learn."
)


def rows(x: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in x}


# -- the embedded digits ----------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 150))
@settings(max_examples=15)
def test_digits_are_split_by_class(seed, per_class):
    config = EXPRESS.replace(per_class=per_class, batch_size=10 * per_class)
    found = data.load(config, seed)
    images, labels = load_digits(return_X_y=True)
    assert np.bincount(found.y_train).tolist() == [per_class] * 10
    assert np.bincount(found.y_test).tolist() == (np.bincount(labels) - per_class).tolist()
    together = np.concatenate([found.x_train, found.x_test])
    assert sorted(map(bytes, together * 16)) == sorted(map(bytes, images)), "every image once, none changed"
    # each image still has its own label
    truth = {(image / 16).tobytes(): label for image, label in zip(images, labels, strict=True)}
    for x, y in ((found.x_train, found.y_train), (found.x_test, found.y_test)):
        assert [truth[image.tobytes()] for image in x] == y.tolist()
    assert not rows(found.x_train) & rows(found.x_test)


def test_shapes_and_types():
    found = data.load(EXPRESS, 0)
    assert (
        found.x_train.shape == (200, 64) and found.x_test.shape == (1597, 64) and found.image_shape == (8, 8)
    )
    for x, y in ((found.x_train, found.y_train), (found.x_test, found.y_test)):
        assert x.dtype == np.float64 and y.dtype == np.int64 and len(x) == len(y)
        assert x.min() == 0 and x.max() == 1


def test_the_seed_alone_decides():
    first, again, other = data.load(EXPRESS, 0), data.load(EXPRESS, 0), data.load(EXPRESS, 1)
    assert first.sha256 == again.sha256 and np.array_equal(first.x_train, again.x_train)
    assert first.sha256 != other.sha256 and not np.array_equal(first.x_train, other.x_train)
    # what else is in the configuration, its own seed included, does not
    assert data.load(EXPRESS.replace(seed=5, width=7, steps=3), 0).sha256 == first.sha256
    # nor does the state of the global generator, and it is left alone
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert data.load(EXPRESS, 0).sha256 == first.sha256
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_the_subset_of_a_seed_stays_what_it_is():
    """Records name the data they were trained on by these digests: a change would orphan them."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng([3, 0])
    chosen = [i for c in range(10) for i in rng.choice(np.flatnonzero(labels == c), 20, replace=False)]
    found = data.load(EXPRESS, 3)
    assert np.array_equal(found.x_train, images[chosen] / 16) and np.array_equal(
        found.y_train, labels[chosen]
    )
    assert data.load(EXPRESS, 0).sha256 == "b0ad93f2ea495af791a66b3c31b6afaadaa841d0e16facd053a843537ffa8326"


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_random_labels(share):
    config = EXPRESS.replace(per_class=150, batch_size=1500)
    true, found = data.load(config, 0), data.load(config.replace(random_labels=share), 0)
    assert np.array_equal(true.x_train, found.x_train), "the same images"
    assert np.array_equal(true.y_test, found.y_test) and np.array_equal(true.x_test, found.x_test)
    # a random label is the true one in one case of ten
    changed = np.mean(true.y_train != found.y_train)
    assert changed == pytest.approx(0.9 * share, abs=0.05)
    assert found.sha256 != true.sha256
    assert set(found.y_train) == set(range(10)) and found.y_train.dtype == np.int64
    assert data.load(config.replace(random_labels=share), 0).sha256 == found.sha256


@pytest.mark.parametrize("seed", [-1, 0.5, 2**32, None, "one"])
def test_a_seed_without_meaning_is_refused(seed):
    with pytest.raises(ConfigError, match=r"^seed must be a whole number of at least 0 .*; got .+\.$"):
        data.load(EXPRESS, seed)


# -- MNIST ------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """An IDX file's content: two zeros, the type (8: bytes), the rank, the sizes, the entries."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(monkeypatch) -> dict[str, bytes]:
    """Four files as MNIST has them, but small and made up, whose checksums the package is told."""
    rng = np.random.default_rng(0)
    files = {}
    for part, images in (("train", 60), ("t10k", 30)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (images, 28, 28)))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(images) % 10)
    checksums = {name: (hashlib.md5(content).hexdigest(),) for name, content in files.items()}
    monkeypatch.setattr(data, "_MD5", checksums)
    return files


@pytest.fixture(autouse=True)
def _forget_mnist():
    """What one test read is not what the next one finds."""
    data._mnist.cache_clear()
    yield
    data._mnist.cache_clear()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty folder where MNIST is looked for."""
    folder = tmp_path / "root"
    (folder / "MNIST" / "raw").mkdir(parents=True)
    monkeypatch.setenv("GROKUTILS_DATA", str(folder))
    return folder


@pytest.fixture
def raw(root, tiny_mnist) -> Path:
    """The folder with four small files in MNIST's form."""
    for name, content in tiny_mnist.items():
        (root / "MNIST" / "raw" / name).write_bytes(content)
    return root / "MNIST" / "raw"


def test_real_mnist(mnist_root):
    found = data.load(RunConfig.recipe("paper"), 0)
    assert found.x_train.shape == (1000, 784) and found.x_test.shape == (10_000, 784)
    assert found.image_shape == (28, 28) and found.source == "MNIST"
    assert np.bincount(found.y_train).tolist() == [100] * 10
    assert np.bincount(found.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for x in (found.x_train, found.x_test):
        assert x.dtype == np.float64 and x.min() == 0 and x.max() == 1
        assert x.mean() == pytest.approx(0.1307, abs=0.005)  # the mean pixel of MNIST
    assert not rows(found.x_train) & rows(found.x_test)


def test_the_same_thousand_images_from_the_whole_and_from_the_first_ten_thousand(
    mnist_root, tmp_path, monkeypatch
):
    """A full download has 60,000 training images, a smaller root the first 10,000 of them."""
    config = RunConfig.recipe("paper")
    small = [data.load(config, seed) for seed in (0, 1)]
    assert small[0].sha256 == "1df92802b585eb05d2a98f616bf8e89437804d9267573943907ca6d6a242de65"
    raw = tmp_path / "full" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    monkeypatch.setenv("GROKUTILS_DATA", str(tmp_path / "full"))
    checksums = {name: list(known) for name, known in data._MD5.items()}
    rng = np.random.default_rng(0)
    for name in NAMES:
        content = (mnist_root / "MNIST" / "raw" / name).read_bytes()
        if name.startswith("train"):
            header, size = (16, 784) if "images" in name else (8, 1)
            first = np.frombuffer(content[header : header + 10_000 * size], np.uint8)
            more = rng.integers(0, 10, 50_000 * size, dtype=np.uint8)
            content = idx(np.concatenate([first, more]).reshape(60_000, *((28, 28) if size > 1 else ())))
            assert len(content) == {784: 47_040_016, 1: 60_008}[size]  # as long as the canonical file
        (raw / name).write_bytes(content)
        checksums[name].append(hashlib.md5(content).hexdigest())
    monkeypatch.setattr(data, "_MD5", checksums)
    full = [data.load(config, seed) for seed in (0, 1)]
    assert [d.sha256 for d in full] == [d.sha256 for d in small]
    assert np.array_equal(full[0].x_train, small[0].x_train)
    assert full[0].sha256 != full[1].sha256


def test_small_files_in_mnists_form(raw, tiny_mnist):
    found = data.load(FEW, 0)
    assert found.x_train.shape == (20, 784) and found.x_test.shape == (30, 784)
    pixels = np.frombuffer(tiny_mnist["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(30, 784)
    assert np.array_equal(found.x_test, pixels / 255) and found.y_test.tolist() == [*range(10)] * 3


def test_the_subset_comes_from_the_pool_alone(raw, monkeypatch):
    monkeypatch.setattr(data, "_POOL", 20)
    pool = np.frombuffer((raw / NAMES[0]).read_bytes()[16:], np.uint8).reshape(60, 784)[:20] / 255
    assert rows(data.load(FEW, 0).x_train) == rows(pool)


def damages(content: bytes) -> dict[str, tuple[bytes, str]]:
    flipped = bytearray(content)
    flipped[-1] ^= 1
    return {
        "cut short": (content[:-1], r"is truncated: [\d,]+ bytes, its header says [\d,]+"),
        "cut in half": (content[: len(content) // 2], "is truncated"),
        "cut after the header": (content[:16], "is truncated"),
        "too long": (content + b"\0", r"is too long: [\d,]+ bytes, its header says [\d,]+"),
        "one bit": (bytes(flipped), "has been altered: its MD5 is not that of MNIST's file of this name"),
        "empty": (b"", "is not an IDX file of bytes"),
        "cut within the header": (content[:6], "is not an IDX file of bytes"),
        "a web page": (b"<html><body>404</body></html>", "is not an IDX file of bytes"),
        "still compressed": (gzip.compress(content), "is not an IDX file of bytes"),
        "of another type": (b"\0\0\x0d" + content[3:], "is not an IDX file of bytes"),
    }


@pytest.mark.parametrize("how", damages(b"1234567890"))
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_by_name(name, how, raw, runs):
    content, said = damages((raw / name).read_bytes())[how]
    (raw / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        data.load(FEW, 0)
    message = str(caught.value)
    assert message.startswith(f"{raw / name} ") and "\n" not in message
    assert message.endswith("Delete it, and it is downloaded again.")


def test_fashion_mnist_is_read_from_a_folder_beside(root, tiny_mnist):
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in tiny_mnist.items():
        (folder / name).write_bytes(content)
    found = data.load(FEW.replace(dataset="fashion-mnist"), 0)
    assert found.source == "FashionMNIST" and found.x_train.shape == (20, 784) and found.image_shape == (28, 28)
    (folder / NAMES[0]).unlink()
    data._mnist.cache_clear()
    with pytest.raises(DataError, match="FashionMNIST is not in .*set GROKUTILS_DATA to a folder that holds FashionMNIST/raw"):
        data.load(FEW.replace(dataset="fashion-mnist"), 0)


def test_a_table_of_two_classes():
    found = data.load(RunConfig.recipe("express", dataset="breast-cancer"), 3)
    assert np.bincount(found.y_train).tolist() == [16, 16] and found.classes == 2 and found.image_shape is None
    assert len(found.y_train) + len(found.y_test) == 569 and found.x_train.shape == (32, 30)
    with pytest.raises(ConfigError, match="per_class must be between 1 and 180 for breast-cancer; got 181"):
        RunConfig.recipe("express", dataset="breast-cancer", per_class=181)


def test_a_file_put_right_is_read(raw, tiny_mnist):
    (raw / NAMES[0]).write_bytes(b"")
    with pytest.raises(DataError):
        data.load(FEW, 0)
    (raw / NAMES[0]).write_bytes(tiny_mnist[NAMES[0]])
    assert data.load(FEW, 0).x_train.shape == (20, 784)


def test_files_of_one_another_are_refused(raw):
    shutil.copy(raw / NAMES[2], raw / NAMES[0])
    with pytest.raises(DataError, match=f"{NAMES[0]} has been altered"):
        data.load(FEW, 0)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything"
)
def test_a_file_that_may_not_be_read(raw):
    (raw / NAMES[0]).chmod(0)
    with pytest.raises(DataError, match=f"{NAMES[0]} cannot be read: Permission denied"):
        data.load(FEW, 0)


@pytest.mark.parametrize("name", NAMES)
def test_real_mnist_altered_by_one_bit_is_refused(name, mnist_root, root):
    for other in NAMES:
        (root / "MNIST" / "raw" / other).symlink_to(mnist_root / "MNIST" / "raw" / other)
    content = bytearray((mnist_root / "MNIST" / "raw" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / "MNIST" / "raw" / name).unlink()
    (root / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} has been altered"):
        data.load(RunConfig.recipe("paper"), 0)


# -- torchvision that cannot be imported ------------------------------------------------------------------


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [variables.get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "raises, said",
    [
        # what the wheel raises beside a CPU build of PyTorch
        (
            "RuntimeError('operator torchvision::nms does not exist')",
            "torchvision, which downloads it, cannot be imported beside this build of PyTorch (install the "
            "torch and torchvision wheels of one build, both CPU or both CUDA)",
        ),
        (
            "ModuleNotFoundError(\"No module named 'torchvision'\")",
            "torchvision, which downloads it, is not installed",
        ),
    ],
)
def test_without_torchvision_the_message_says_what_to_do(raises, said, tmp_path, runs):
    (tmp_path / "stub" / "torchvision").mkdir(parents=True)
    (tmp_path / "stub" / "torchvision" / "__init__.py").write_text(f"raise {raises}\n")
    root = tmp_path / "nothing here"
    result = run_python(
        "-m",
        "grokutils",
        "train",
        "--recipe",
        "paper",
        "--steps",
        "10",
        "--out",
        "x",
        PYTHONPATH=str(tmp_path / "stub"),
        GROKUTILS_DATA=str(root),
        GROKUTILS_RUNS=str(runs),
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == f"grokutils: MNIST is not in {root}, and {said}. {THREE_WAYS_OUT}\n"
    assert not root.exists()
    assert not (runs / "x").exists(), "nothing half-written"


# -- the download -----------------------------------------------------------------------------------------

# Runs in a process of its own: torchvision is told of a server on this machine, and, where its wheel is not
# of torch's build, of the operators that its own library would have registered. All else is the real thing.
DOWNLOAD = """
import contextlib, io, json, sys
from pathlib import Path
import torch

try:
    import torchvision
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision.datasets import MNIST
from grokutils import DataError, RunConfig
from grokutils.experiment import data

given = json.loads(sys.argv[1])
data._MD5 = {name: (md5,) for name, md5 in given["files"].items()}
MNIST.resources = [tuple(pair) for pair in given["resources"]]
config = RunConfig.recipe("paper", per_class=2, batch_size=20)
outcome = {}
for name, (address, root) in given["attempts"].items():
    MNIST.mirrors = [address]
    data._mnist.cache_clear()
    data.paths.data_root = lambda: Path(root)
    try:
        outcome[name] = {"sha256": data.load(config, 0).sha256}
    except DataError as error:
        outcome[name] = {"message": str(error)}
Path(given["answer"]).write_text(json.dumps(outcome))
"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and notes what was fetched."""

    fetched: list[str]

    def do_GET(self):
        self.fetched.append(self.path)
        super().do_GET()

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(folder: Path):
    handler = type("Handler", (Server,), {"fetched": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def downloads(tmp_path, tiny_mnist):
    """What came of several attempts to download, and what the server was asked for."""
    site = tmp_path / "site"
    for folder in ("good", "corrupt"):
        (site / folder).mkdir(parents=True)
        for name, content in tiny_mnist.items():
            (site / folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    resources = [
        (f"{n}.gz", hashlib.md5((site / "good" / f"{n}.gz").read_bytes()).hexdigest()) for n in NAMES
    ]
    archive = site / "corrupt" / f"{NAMES[1]}.gz"
    archive.write_bytes(archive.read_bytes()[:-1])
    with socket.socket() as closed, serving(site) as (address, fetched):
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        attempts = {
            "good": (f"{address}/good/", tmp_path / "a"),
            "again": (f"{address}/good/", tmp_path / "a"),
            "already there": (f"{nobody}/", tmp_path / "a"),
            "corrupt": (f"{address}/corrupt/", tmp_path / "b"),
            "put right": (f"{address}/good/", tmp_path / "b"),
            "not found": (f"{address}/elsewhere/", tmp_path / "c"),
            "refused": (f"{nobody}/", tmp_path / "d"),
        }
        given = dict(
            files={name: known[0] for name, known in data._MD5.items()},
            resources=resources,
            attempts={name: (url, str(root)) for name, (url, root) in attempts.items()},
            answer=str(tmp_path / "answer.json"),
        )
        result = run_python("-c", DOWNLOAD, json.dumps(given), no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")
        assert result.returncode == 0, result.stderr
    return json.loads((tmp_path / "answer.json").read_text()), fetched


def test_downloading(downloads, raw, tmp_path):
    outcome, fetched = downloads
    # from the files as they are, and from the archives: the same
    assert outcome["good"]["sha256"] == outcome["put right"]["sha256"] == data.load(FEW, 0).sha256
    for folder in ("a", "b"):
        for name in NAMES:
            assert (tmp_path / folder / "MNIST" / "raw" / name).read_bytes() == (raw / name).read_bytes()
    # once downloaded, never asked for again
    assert outcome["again"] == outcome["already there"] == outcome["good"]
    good = [
        path for path, _ in itertools.groupby(fetched) if path.startswith("/good/")
    ]  # torchvision asks twice
    assert good[:4] == [f"/good/{name}.gz" for name in NAMES]
    assert good[4:] == good[1:4], "after a failure only what is still to come"

    for attempt, said in {"corrupt": "corrupted", "not found": "404", "refused": "refused"}.items():
        message = outcome[attempt]["message"]
        assert said in message and "the download failed (" in message
        assert message.startswith(f"MNIST is not in {tmp_path}") and message.endswith(THREE_WAYS_OUT)
        assert "\n" not in message
    for folder in ("c", "d"):
        assert not list((tmp_path / folder).rglob("*-ubyte*")), "nothing that could be taken for an image"
