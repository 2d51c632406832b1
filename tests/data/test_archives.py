"""Where archives come from: a folder, a mirror, an address; and what vouches for them."""

import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest

from fomo.config import UserError
from fomo.data import archives
from fomo.data.archives import obtain

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that holds emotions.tgz, named by FOMO_MIRROR."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "emotions.tgz").write_bytes(CONTENT)
    monkeypatch.setenv("FOMO_MIRROR", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.removeprefix("/base/")
        asked = self.headers.get("Range")
        server.asked.append((name, asked))
        if name not in server.files:
            self.send_error(404)
            return
        content = server.files[name]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if server.breaks:
            server.breaks -= 1
            end = start + (end - start) // 2
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that holds emotions.tgz and its MD5SUMS, named by FOMO_MIRROR.

    It breaks off in the middle `breaks` times, honours ranges if `ranges`, and notes what it is `asked`.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {"emotions.tgz": CONTENT, "MD5SUMS": f"{MD5}  emotions.tgz\n".encode()}
    server.breaks, server.ranges, server.asked = 0, True, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.address = f"http://127.0.0.1:{server.server_address[1]}/base"
    monkeypatch.setenv("FOMO_MIRROR", server.address)
    monkeypatch.setattr(archives.time, "sleep", lambda seconds: None)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def archive_requests(server) -> list[str | None]:
    return [asked for name, asked in server.asked if name == "emotions.tgz"]


def test_archive_in_the_folder_goes_before_every_mirror(data, mirror):
    (data / "emotions.tgz").write_bytes(b"own")
    assert obtain("emotions", data) == data / "emotions.tgz"


def test_archive_is_taken_from_the_mirror_folder(data, mirror, capsys):
    (mirror / "MD5SUMS").write_text(f"{'0' * 32}  flowers.tgz\n{MD5.upper()} *./emotions.tgz\n")
    assert obtain("emotions", data).read_bytes() == CONTENT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("sums", [None, "", f"{'0' * 32}  flowers.tgz\n"])
def test_archive_that_nobody_vouches_for_is_taken_with_a_warning_that_says_its_md5(data, mirror, capsys, sums):
    if sums is not None:
        (mirror / "MD5SUMS").write_text(sums)
    assert obtain("emotions", data).read_bytes() == CONTENT
    assert f"emotions.tgz should have; it has {MD5}" in capsys.readouterr().err


def test_archive_of_another_md5_is_refused_and_the_mirror_keeps_it(data, mirror):
    (mirror / "MD5SUMS").write_text(f"{'0' * 32}  emotions.tgz\n")
    with pytest.raises(UserError, match=f"has md5 {MD5}, but {'0' * 32} is expected"):
        obtain("emotions", data)
    assert (mirror / "emotions.tgz").exists()


def test_mirror_folder_without_the_archive_is_named(data, mirror):
    with pytest.raises(UserError, match=rf"FOMO_MIRROR={mirror} has no flowers\.tgz"):
        obtain("flowers", data)


def test_archive_is_downloaded_and_kept(data, server, capsys):
    assert obtain("emotions", data) == data / "emotions.tgz"
    assert (data / "emotions.tgz").read_bytes() == CONTENT
    assert [path.name for path in data.iterdir()] == ["emotions.tgz"]
    assert "warning" not in capsys.readouterr().err
    obtain("emotions", data)
    assert len(archive_requests(server)) == 1


def test_download_goes_on_where_it_broke_off(data, server):
    server.breaks = 2
    assert obtain("emotions", data).read_bytes() == CONTENT
    assert archive_requests(server) == [None, "bytes=150000-", "bytes=225000-"]


def test_download_starts_anew_where_the_server_knows_no_ranges(data, server):
    server.breaks, server.ranges = 1, False
    assert obtain("emotions", data).read_bytes() == CONTENT


def test_download_that_keeps_breaking_goes_on_at_the_next_call(data, server):
    server.breaks = archives.ATTEMPTS
    with pytest.raises(UserError, match="broke off 5 times; call again to go on"):
        obtain("emotions", data)
    assert not (data / "emotions.tgz").exists()
    assert obtain("emotions", data).read_bytes() == CONTENT
    assert archive_requests(server)[-1] == "bytes=290625-"


def test_whole_download_of_a_killed_run_is_used(data, server):
    (data / ".emotions.tgz.part").write_bytes(CONTENT)
    assert obtain("emotions", data).read_bytes() == CONTENT


def test_download_of_another_md5_is_refused_and_not_gone_on_with(data, server):
    server.files["MD5SUMS"] = f"{'0' * 32}  emotions.tgz\n".encode()
    with pytest.raises(UserError, match=f"has md5 {MD5}"):
        obtain("emotions", data)
    assert list(data.iterdir()) == []


def test_part_of_another_file_is_found_by_the_md5(data, server):
    (data / ".emotions.tgz.part").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="is expected"):
        obtain("emotions", data)
    assert obtain("emotions", data).read_bytes() == CONTENT


def test_download_that_nobody_vouches_for_is_taken_with_a_warning(data, server, capsys):
    del server.files["MD5SUMS"]
    obtain("emotions", data)
    assert MD5 in capsys.readouterr().err


def test_published_archives_are_checked_against_the_md5_that_the_code_knows(data, server, monkeypatch):
    monkeypatch.delenv("FOMO_MIRROR")
    monkeypatch.setattr(archives, "ADDRESS", server.address)
    with pytest.raises(UserError, match=f"has md5 {MD5}, but e8302a10bc38a7bfb2e60c67b6bab1e4 is expected"):
        obtain("emotions", data)
    monkeypatch.setitem(archives.MD5, "emotions", MD5)
    assert obtain("emotions", data).read_bytes() == CONTENT
    assert "MD5SUMS" not in dict(server.asked)


def test_archive_that_a_server_lacks_is_named_with_what_to_do(data, server):
    with pytest.raises(UserError, match=r"flowers\.tgz cannot be fetched: HTTP 404 .*FOMO_MIRROR"):
        obtain("flowers", data)
    assert list(data.iterdir()) == []


def test_address_that_cannot_be_reached_is_named_with_what_to_do(data, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("FOMO_MIRROR", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setattr(archives.time, "sleep", lambda seconds: None)
        with pytest.raises(UserError, match=r"emotions\.tgz cannot be fetched .*FOMO_MIRROR"):
            obtain("emotions", data)
