"""Archives of data sets: fetched with resume, checked against their md5, unpacked without trust in what they hold."""

import glob
import hashlib
import os
import shutil
import stat
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path, PureWindowsPath
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

from tqdm import tqdm

from fomo.config import UserError

ADDRESS = "https://ml.informatik.uni-freiburg.de/research-artifacts/automl-exam-24-vision"
MD5 = {  # of the archives at ADDRESS
    "emotions": "e8302a10bc38a7bfb2e60c67b6bab1e4",
    "fashion": "ec70b7addb6493d4e3d57939ff76e2d5",
    "flowers": "31ff68dec06e95997aa4d77cd1eb5744",
    "skin_cancer": "cf807a5c6c29ea1d97e660abb3be88ad",
}
KINDS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # of archives that are unpacked
REFUSED = (".7z", ".rar")
ATTEMPTS = 5  # at a download that breaks off; each goes on where the last one stopped
MAX_FILES = 1_000_000
LONGEST_END = 22 + 65535  # bytes of what a zip ends with: the number of its files, a comment
UNTOLD = 65535  # such a number: there are more, and it is elsewhere
DAY = 86400  # seconds


def obtain(name: str, folder: Path) -> Path:
    """The archive `name`.tgz: in `folder`, as it is; or, checked, in the folder FOMO_MIRROR, or downloaded from there
    or from ADDRESS.

    Raises `UserError` if it is not to be had, or if its md5 is another than the one expected.
    """
    local = folder / f"{name}.tgz"
    if local.exists():
        return local
    base = (os.environ.get("FOMO_MIRROR") or ADDRESS).rstrip("/")
    if "://" in base:
        archive = folder / f".{name}.tgz.part"
        download(f"{base}/{name}.tgz", archive)
        expected = MD5.get(name) if base == ADDRESS else _listed(name, _read_address(f"{base}/MD5SUMS"))
    else:
        archive = Path(base).expanduser() / f"{name}.tgz"
        if not archive.is_file():
            raise UserError(f"data set '{name}' is not in {folder}, and FOMO_MIRROR={base} has no {name}.tgz")
        sums = archive.with_name("MD5SUMS")
        expected = _listed(name, sums.read_text() if sums.exists() else "")
    found = _md5(archive)
    if expected is None:
        print(f"warning: nobody says what md5 {archive.name} should have; it has {found}", file=sys.stderr)
    elif found != expected:
        if archive.parent == folder:
            archive.unlink()  # or the next attempt would go on with it
        raise UserError(f"{archive} has md5 {found}, but {expected} is expected; it is damaged or another file")
    if archive.name.endswith(".part"):
        os.replace(archive, local)
        return local
    return archive


def download(url: str, path: Path) -> None:
    """Fetches `url` to `path`, going on behind what `path` already holds (HTTP range). `UserError` if it fails."""
    for attempt in range(1, ATTEMPTS + 1):
        have = path.stat().st_size if path.exists() else 0
        try:
            with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=30) as answer:
                have = have if answer.status == 206 else 0  # 200: the server sends all of it
                total = have + int(answer.headers.get("Content-Length") or 0)
                with (
                    path.open("ab" if have else "wb") as file,
                    tqdm(total=total, initial=have, desc=path.name.strip("."), unit="B", unit_scale=True) as bar,
                ):
                    while block := answer.read(1 << 20):
                        file.write(block)
                        bar.update(len(block))
                if not answer.headers.get("Content-Length") or path.stat().st_size >= total:
                    return
        except HTTPError as error:
            if error.code == 416:  # nothing behind what is there: it is whole, or another file; the md5 tells
                return
            raise UserError(f"{url} cannot be fetched: HTTP {error.code} {error.reason}; {_remedy(path)}") from error
        except (OSError, HTTPException) as error:
            if attempt == ATTEMPTS:
                raise UserError(f"{url} cannot be fetched ({error}); {_remedy(path)}") from error
        time.sleep(0.2 * attempt)
    raise UserError(f"{url} broke off {ATTEMPTS} times; call again to go on")


def _remedy(path: Path) -> str:
    return f"put the archive into {path.parent}, or name a folder or an address that has it by FOMO_MIRROR"


def _read_address(url: str) -> str:
    try:
        with urlopen(url, timeout=30) as answer:
            return answer.read(1 << 20).decode()
    except OSError:
        return ""


def _listed(name: str, sums: str) -> str | None:
    """The md5 of `name`.tgz in the text of a file MD5SUMS (lines of md5 and file name)."""
    entries = [line.split() for line in sums.splitlines()]
    listed = {entry[1].lstrip("*").removeprefix("./"): entry[0].lower() for entry in entries if len(entry) == 2}
    return listed.get(f"{name}.tgz")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks `archive` (of `KINDS`) to `folder`, whole or not at all; if another process is done before, its is kept.

    Raises `UserError` for a damaged archive, and for one that holds a path outside of it, a link, a device, or far more
    than images compress to; then nothing is left behind.
    """
    limit = 10**9 + 20 * archive.stat().st_size  # bytes; images hardly compress, so 20 times is ample
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.unpacking")
    size, extract = 0, _extract_zip if archive.name.lower().endswith(".zip") else _extract_tar
    try:
        _clear(folder)
        temporary.mkdir(parents=True)
        with tqdm(desc=f"unpacking {archive.name}", unit="file", leave=False) as bar:
            for number, (name, length, plain) in enumerate(extract(archive, temporary, limit), start=1):
                size += length
                path = PureWindowsPath(name)  # it knows both kinds of slashes
                if not plain:
                    raise UserError(f"{archive} holds '{name[:200]}', which is neither a file nor a folder; refused")
                if path.root or ".." in path.parts:
                    raise UserError(f"{archive} holds '{name[:200]}', which lies outside of it; refused")
                if size > limit or number > MAX_FILES:
                    raise UserError(f"{archive} unpacks to over {limit} bytes or {MAX_FILES} files; refused")
                bar.update()
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except UserError:
        raise
    except Exception as error:  # the libraries raise nearly anything for what is damaged, encrypted, or packed rarely
        raise UserError(
            f"{archive} cannot be unpacked ({str(error)[:200]}); fetch it anew, or unpack it and give the folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Removes what killed runs have left that unpacked to `folder`: what is a day old is no other's that still does."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.unpacking"):
        with suppress(FileNotFoundError):  # another process clears as well
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)


class _Header(tarfile.TarInfo):
    """A header of a tar. Where one is damaged or missing, tarfile would stop in silence."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # the mark of the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _extract_tar(archive: Path, folder: Path, limit: int) -> Iterator[tuple[str, int, bool]]:
    """Yields (name, bytes, whether it is a file or folder) of each member, and extracts it if nobody objects."""
    with tarfile.open(archive, "r:*", tarinfo=_Header) as tar:
        size = 0
        for member in tar:
            yield member.name, member.size, member.isfile() or member.isdir()
            tar.extract(member, folder, filter="data")
            size += member.size
        while size < limit and (rest := tar.fileobj.read(1 << 20)):  # the checksum is at the end of the stream
            size += len(rest)


def _extract_zip(archive: Path, folder: Path, limit: int) -> Iterator[tuple[str, int, bool]]:
    """As `_extract_tar`; what a member claims to be long, it may not exceed."""
    with zipfile.ZipFile(archive) as packed:
        members, claimed = packed.infolist(), _claimed(archive)
        if claimed not in (len(members), UNTOLD):
            raise zipfile.BadZipFile(f"it names {len(members)} files, and says that these are {claimed}")
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            yield member.filename, member.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR)
            member.filename = member.filename.replace("\\", "/")  # as some programs of Windows write it
            packed.extract(member, folder)


def _claimed(archive: Path) -> int:
    """The number of files that a zip says it has, at its end: of a damaged list zipfile reads a part without a word."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - LONGEST_END))
        _, mark, rest = file.read().rpartition(b"PK\5\6")
    return int.from_bytes(rest[6:8], "little") if mark else UNTOLD
