"""Archives are unpacked whole or not at all, whatever they hold."""

import io
import os
import shutil
import stat
import tarfile
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import toys

from fomo.config import UserError
from fomo.data import archives
from fomo.data.archives import unpack
from fomo.data.datasets import load_dataset


@pytest.fixture
def folder(tmp_path):
    """A toy data set that the test may damage."""
    return toys.write_dataset(tmp_path / "toy", train=4, test=2)


def add_file(tar, name):
    member = tarfile.TarInfo(name)
    member.size = 4
    tar.addfile(member, io.BytesIO(b"evil"))


def add_link(tar, kind):
    member = tarfile.TarInfo("toy/link")
    member.type, member.linkname = kind, "/etc/passwd"
    tar.addfile(member)


def add_claim(tar, size):
    """The header of a file of zeros; the archive ends before they do."""
    member = tarfile.TarInfo("images_train/zeros.png")
    member.size = size
    tar.fileobj.write(member.tobuf())


def add_sparse(tar, size):
    """A file that is all hole: it takes no room in the archive."""
    member = tarfile.TarInfo("images_train/hole.png")
    member.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": "0", "GNU.sparse.map": f"{size},0"}
    tar.addfile(member)


EVIL = {
    "parent": lambda tar: add_file(tar, "../evil"),
    "deep parent": lambda tar: add_file(tar, "images_train/../../evil"),
    "symbolic link": lambda tar: add_link(tar, tarfile.SYMTYPE),
    "hard link": lambda tar: add_link(tar, tarfile.LNKTYPE),
    "device": lambda tar: add_link(tar, tarfile.CHRTYPE),
    "block device": lambda tar: add_link(tar, tarfile.BLKTYPE),
    "pipe": lambda tar: add_link(tar, tarfile.FIFOTYPE),
    "bomb": lambda tar: add_claim(tar, 2 * 10**9),
    "sparse bomb": lambda tar: add_sparse(tar, 2 * 10**9),
    "absolute path": lambda tar: add_file(tar, "/tmp/fomo_evil"),
    "back-slash": lambda tar: add_file(tar, "..\\evil"),
    "drive": lambda tar: add_file(tar, "C:\\evil"),
    "file that is a folder": lambda tar: add_file(tar, "train.csv/evil"),
    "folder that is a file": lambda tar: [add_file(tar, "a/b"), add_file(tar, "a")],
    "long name": lambda tar: add_file(tar, "n" * 300),
}


@pytest.fixture
def archive(folder, tmp_path):
    path = tmp_path / "toy.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for child in sorted(folder.iterdir()):
            tar.add(child, child.name)
    return path


def test_archive_unpacks_to_its_data_set(archive, folder, tmp_path):
    unpack(archive, tmp_path / "unpacked")
    pd.testing.assert_frame_equal(load_dataset(tmp_path / "unpacked").train, load_dataset(folder).train)


@pytest.mark.parametrize(("name", "mode"), [("evil.tgz", "w:gz"), ("evil.tar", "w")])
@pytest.mark.parametrize("evil", EVIL)
def test_archive_that_reaches_outside_is_refused_and_leaves_nothing(tmp_path, evil, name, mode):
    (tmp_path / "inside").mkdir()
    with tarfile.open(tmp_path / name, mode) as tar:
        add_file(tar, "train.csv")
        EVIL[evil](tar)
    with pytest.raises(UserError, match=f"^{tmp_path}/{name} .*"):
        unpack(tmp_path / name, tmp_path / "inside" / "toy")
    assert list((tmp_path / "inside").iterdir()) == []
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/fomo_evil").exists()


def test_absolute_path_in_an_archive_does_not_land_there(tmp_path):
    (tmp_path / "inside").mkdir()
    with tarfile.open(tmp_path / "evil.tgz", "w:gz") as tar:
        add_file(tar, str(tmp_path / "evil"))
    with pytest.raises(UserError, match=r"evil\.tgz"):
        unpack(tmp_path / "evil.tgz", tmp_path / "inside" / "toy")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.99])
def test_truncated_archive_is_refused_and_leaves_nothing(archive, tmp_path, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError, match=r"toy\.tgz cannot be unpacked"):
        unpack(archive, tmp_path / "inside" / "toy")
    assert list((tmp_path / "inside").iterdir()) == []


def test_archive_of_too_many_files_is_refused_and_leaves_nothing(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 10)
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError, match="or 10 files; refused"):
        unpack(archive, tmp_path / "inside" / "toy")
    assert list((tmp_path / "inside").iterdir()) == []


@pytest.mark.parametrize("kind", ["xz", "bz2", "gz"])
def test_archive_damaged_in_the_middle_is_refused_and_leaves_nothing(folder, tmp_path, kind):
    with tarfile.open(tmp_path / "toy.tgz", f"w:{kind}") as tar:
        tar.add(folder, ".")
    content = bytearray((tmp_path / "toy.tgz").read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 400):
        content[place] ^= 0x5A
    (tmp_path / "toy.tgz").write_bytes(content)
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError, match=r"toy\.tgz cannot be unpacked"):
        unpack(tmp_path / "toy.tgz", tmp_path / "inside" / "toy")
    assert list((tmp_path / "inside").iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away_once_it_is_old(archive, tmp_path):
    for name in ("old", "new"):
        (tmp_path / f".toy.{name}.unpacking").mkdir()
    os.utime(tmp_path / ".toy.old.unpacking", (0, 0))
    shutil.rmtree(tmp_path / "toy")
    unpack(archive, tmp_path / "toy")
    assert not (tmp_path / ".toy.old.unpacking").exists()
    assert (tmp_path / ".toy.new.unpacking").exists()  # maybe another process is at it


def test_archive_that_several_unpack_at_once_is_there_for_each(archive, folder, tmp_path):
    ready = threading.Barrier(4)

    def work(_):
        ready.wait()
        unpack(archive, tmp_path / "inside" / "toy")
        return load_dataset(tmp_path / "inside" / "toy").fingerprint()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(4)))) == 1
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["toy"]


def test_folder_that_another_process_has_unpacked_by_then_is_kept(archive, tmp_path, monkeypatch):
    own = os.replace

    def replace(source, target):
        (target / "other").mkdir(parents=True)
        own(source, target)

    monkeypatch.setattr(os, "replace", replace)
    unpack(archive, tmp_path / "inside" / "toy")
    assert [path.name for path in (tmp_path / "inside").rglob("*")] == ["toy", "other"]


@pytest.mark.parametrize("cut", [512, 1536, 2048])
def test_tar_without_its_end_is_refused(tmp_path, cut):
    with tarfile.open(tmp_path / "toy.tar", "w") as tar:
        for name in "abc":
            add_file(tar, name)
    content = bytearray((tmp_path / "toy.tar").read_bytes())
    (tmp_path / "toy.tar").write_bytes(content[:cut])
    with pytest.raises(UserError, match=r"toy\.tar cannot be unpacked"):
        unpack(tmp_path / "toy.tar", tmp_path / "toy")
    content[1024] ^= 1  # the header of the second file
    (tmp_path / "toy.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"toy\.tar cannot be unpacked"):
        unpack(tmp_path / "toy.tar", tmp_path / "toy")


def zipped(path, *members, **options):
    """A zip of (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", **options) as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may occur twice
        for name, content in members:
            packed.writestr(name, content)
    return path


def of_kind(name, kind):
    """A member that is no file."""
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (kind | 0o777) << 16
    return member


def claimed(path, size):
    """A zip whose one member is 10 MB of zeros, and claims to be of another size."""
    content = bytearray(zipped(path, ("a", bytes(10**7)), compression=zipfile.ZIP_DEFLATED).read_bytes())
    start = content.index(b"PK\x01\x02") + 24
    content[start : start + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)


def encrypted(path):
    content = bytearray(zipped(path, ("a", b"good")).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)


def named_badly(path):
    """A zip that says its names are UTF-8, where one is not."""
    path.write_bytes(zipped(path, ("é", b"good")).read_bytes().replace("é".encode(), b"\xff\xff"))


def packed_rarely(path):
    content = bytearray(zipped(path, ("a", b"good")).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(mark) + offset] = 98
    path.write_bytes(content)


EVIL_ZIPS = {
    **{
        name: lambda path, name=name: zipped(path, ("good", b"good"), (name, b"evil"))
        for name in (
            "../evil",
            "a/../../evil",
            "/tmp/fomo_evil",
            "..\\evil",
            "C:\\evil",
            "C:/evil",
            "\\\\host\\x\\evil",
        )
    },
    **{
        str(kind): lambda path, kind=kind: zipped(path, ("good", b"good"), (of_kind("evil", kind), "/etc/passwd"))
        for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    },
    "claims much": lambda path: claimed(path, 4 * 10**9),
    "claims little": lambda path: claimed(path, 10),
    "encrypted": encrypted,
    "name that is no UTF-8": named_badly,
    "packed rarely": packed_rarely,
    "file that is a folder": lambda path: zipped(path, ("a", b"good"), ("a/b", b"evil")),
    "folder that is a file": lambda path: zipped(path, ("a/b", b"good"), ("a", b"evil")),
    "long name": lambda path: zipped(path, ("n" * 300, b"evil")),
    "no archive": lambda path: path.write_bytes(b"no archive"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(zipped(path, ("a", bytes(1000))).read_bytes()[:-30]),
    "no images": lambda path: zipped(path, ("a/b.txt", b"good")),
    "nothing": lambda path: zipped(path),
}


@pytest.mark.parametrize("evil", EVIL_ZIPS)
def test_zip_that_is_no_data_set_is_refused_and_nothing_of_it_lies_outside(tmp_path, monkeypatch, evil):
    monkeypatch.setenv("FOMO_RUNS", str(tmp_path / "runs"))
    EVIL_ZIPS[evil](tmp_path / "evil.zip")
    with pytest.raises(UserError, match=f"^{tmp_path}/") as refusal:
        load_dataset(str(tmp_path / "evil.zip"))
    assert "evil.zip" in str(refusal.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and "unpacked" not in path.parts] == [
        "evil.zip"
    ]
    if evil not in ("no images", "nothing"):  # which unpack well
        assert [path.name for path in (tmp_path / "runs").iterdir()] == []
    assert not Path("/tmp/fomo_evil").exists()


def test_zip_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 10)
    zipped(tmp_path / "toy.zip", *((str(number), b"") for number in range(11)))
    with pytest.raises(UserError, match="or 10 files; refused"):
        unpack(tmp_path / "toy.zip", tmp_path / "toy")


def test_zip_whose_list_of_files_is_cut_short_is_refused(tmp_path):
    content = bytearray(zipped(tmp_path / "toy.zip", *((f"{number}.png", b"good") for number in range(5))).read_bytes())
    end = content.rindex(b"PK\5\6")
    size = int.from_bytes(content[end + 12 : end + 16], "little")
    content[end + 12 : end + 16] = (size * 3 // 5).to_bytes(4, "little")  # and zipfile looks for it in another place
    (tmp_path / "toy.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"toy\.zip cannot be unpacked"):
        unpack(tmp_path / "toy.zip", tmp_path / "toy")
    content[end + 12 : end + 16] = size.to_bytes(4, "little")
    content[end + 10] = 3
    (tmp_path / "toy.zip").write_bytes(content)
    with pytest.raises(UserError, match="names 5 files, and says that these are 3"):
        unpack(tmp_path / "toy.zip", tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy.zip"]


def test_zip_as_programs_of_windows_write_it_unpacks_to_folders(tmp_path):
    zipped(tmp_path / "toy.zip", ("a\\b\\", b""), ("a\\b\\1.png", b"old"), ("a/b/1.png", b"new"), ("é/猫.png", b"good"))
    unpack(tmp_path / "toy.zip", tmp_path / "toy")
    files = {str(path.relative_to(tmp_path / "toy")): path for path in (tmp_path / "toy").rglob("*.png")}
    assert set(files) == {"a/b/1.png", "é/猫.png"}
    assert files["a/b/1.png"].read_bytes() == b"new"  # the last of a name counts, as everywhere
