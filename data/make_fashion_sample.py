"""Draws data/fashion_sample.tgz from Fashion-MNIST: 4000 train and 1000 test images, stratified, seed 0.

    apt-get install dataset-fashion-mnist
    python data/make_fashion_sample.py

The same input gives the same images; the archive's bytes may differ between versions of zlib.
"""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.model_selection import train_test_split

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts the original files
TARGET = Path(__file__).with_name("fashion_sample.tgz")
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
COUNTS = {"train": ("train", 4000), "test": ("t10k", 1000)}
LICENCE = """A sample of Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist, drawn by
make_fashion_sample.py.

The MIT License (MIT). Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice and
this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def read_idx(name: str, offset: int) -> np.ndarray:
    """The bytes of a gzipped IDX file behind its header of `offset` bytes."""
    return np.frombuffer(gzip.decompress((SOURCE / name).read_bytes()), np.uint8, offset=offset)


def main() -> None:
    with tarfile.open(TARGET, "w:gz", compresslevel=9) as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        add("classes.txt", "\n".join(NAMES).encode())
        add("description.md", LICENCE.encode())
        for split, (prefix, count) in COUNTS.items():
            images = read_idx(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
            labels = read_idx(f"{prefix}-labels-idx1-ubyte.gz", 8)
            rows, _ = train_test_split(np.arange(len(labels)), train_size=count, stratify=labels, random_state=0)
            files = [f"{row:05d}.png" for row in sorted(rows)]
            table = pd.DataFrame({"image_file_name": files, "label": labels[sorted(rows)]})
            add(f"{split}.csv", table.to_csv(index=False).encode())
            for row, file in zip(sorted(rows), files, strict=True):
                png = io.BytesIO()
                Image.fromarray(images[row]).save(png, format="png", optimize=True)
                add(f"images_{split}/{file}", png.getvalue())


if __name__ == "__main__":
    main()
