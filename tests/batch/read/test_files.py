import gzip
import http.server
import json
import os
import socket
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.batch.read import file_source, files, open_source
from penstock.errors import InputError, MissingExtraError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"a": 1}\n')


def names(folder, found):
    return [file.path.removeprefix(f"{folder}/") for file in found]


def test_directories_and_globs_are_sorted(tmp_path):
    make(
        tmp_path,
        "b.jsonl",
        "a/c.jsonl",
        "a.jsonl",
        "_x.jsonl",
        ".h.jsonl",
        "o.jsonl.penstock/p.jsonl",
        "readme.md",
    )
    assert names(tmp_path, file_source.find(str(tmp_path))) == ["a.jsonl", "b.jsonl", "a/c.jsonl"]
    assert names(tmp_path, file_source.find(f"{tmp_path}/*.jsonl")) == [
        "_x.jsonl",
        "a.jsonl",
        "b.jsonl",
    ]
    assert names(tmp_path, file_source.find(f"{tmp_path}/**/c.jsonl")) == ["a/c.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("absent.jsonl", "no such file"),
        ("*.jsonl", "no file matches"),
        ("empty", "no data files.*known extensions are .jsonl, .ndjson, .csv, .parquet"),
        ("x.txt", r"unknown extension; known are .jsonl.* takes a table or frame"),
        ("x.json", r"unknown extension.* JSON lines are called \*\.jsonl, and jq"),
        ("x.parquet.gz", "unknown extension"),
        ("mixed", "several forms"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path, pattern, message):
    make(tmp_path, "x.txt", "x.json", "x.parquet.gz", "mixed/a.jsonl", "mixed/b.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        file_source.find(str(tmp_path / pattern))
    assert "\n" not in str(caught.value)


def test_a_name_with_magic_characters_is_a_name_first(tmp_path):
    make(tmp_path, "a[1].jsonl")
    assert names(tmp_path, file_source.find(f"{tmp_path}/a[1].jsonl")) == ["a[1].jsonl"]


def test_fingerprints_tell_data_apart(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl")
    pattern = str(tmp_path / "*.jsonl")
    before = file_source.fingerprint(pattern, file_source.find(pattern))
    assert before == file_source.fingerprint(pattern, file_source.find(pattern))
    (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
    assert file_source.fingerprint(pattern, file_source.find(pattern)) != before


async def test_urls():
    memory = fsspec.filesystem("memory")
    memory.pipe("/data/a.jsonl", b'{"a": 1}\n')
    memory.pipe("/data/b.jsonl", b'{"a": 2}\n')
    for url in ("memory://data", "memory://data/*.jsonl"):
        source = await open_source(url)
        assert [row.values for batch in source.batches() for row in batch] == [{"a": 1}, {"a": 2}]
        assert source.fingerprint is not None
        assert source.fingerprint["input files"] == 2
    with pytest.raises(InputError, match="no such file"):
        await open_source("memory://data/absent.jsonl")


async def test_urls_of_unknown_or_missing_file_systems():
    with pytest.raises(InputError, match="nosuch"):
        await open_source("nosuch://x/a.jsonl")
    with pytest.raises(MissingExtraError, match=r"penstock\[s3\]"):
        await open_source("s3://bucket/a.jsonl")


def test_the_middle_of_a_file_counts(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 200_001)
    before = file_source.fingerprint(str(path), file_source.find(str(path)))
    path.write_bytes(b"x" * 100_000 + b"y" + b"x" * 100_000)
    assert file_source.fingerprint(str(path), file_source.find(str(path))) != before
    monkeypatch.setattr(file_source, "_HASHED_BYTES", 1000)
    before = file_source.fingerprint(str(path), file_source.find(str(path)))
    os.utime(path, ns=(1, 1))
    assert file_source.fingerprint(str(path), file_source.find(str(path))) != before


def unlike_files(folder):
    """What has a data file's name and is none."""
    os.mkfifo(folder / "pipe.jsonl")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.relpath(folder / "socket.jsonl"))  # such a path must be short
    listening.close()
    (folder / "device.jsonl").symlink_to("/dev/zero")
    (folder / "folder.jsonl").mkdir()
    (folder / "nothing.jsonl").symlink_to(folder / "absent")
    (folder / "circle.jsonl").symlink_to(folder / "circle.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.jsonl", "is a pipe, which can be read once only; give '-' as the input"),
        ("socket.jsonl", "is a socket, no file"),
        ("device.jsonl", "is a device, no file"),
        ("folder.jsonl", "no data files in this directory"),
        ("nothing.jsonl", "no such file"),
        ("circle.jsonl", "symbolic links"),
    ],
)
async def test_what_is_no_file_is_refused_by_name(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    unlike_files(tmp_path)
    with pytest.raises(InputError, match=rf"{name}: .*{message}") as error:
        await open_source(tmp_path / name)
    assert "\n" not in str(error.value)
    if name != "folder.jsonl":
        for other in tmp_path.iterdir():
            if other.name != name and not other.is_dir():
                other.unlink()
        (tmp_path / "good.jsonl").write_text('{"a": 1}\n')
        for pattern in (str(tmp_path), f"{tmp_path}/*.jsonl"):
            with pytest.raises(InputError, match=name):
                await open_source(pattern)


def test_a_file_that_becomes_a_pipe_does_not_hang(tmp_path):
    make(tmp_path, "a.jsonl")
    (file,) = file_source.find(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").unlink()
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="is a pipe"):
        file.open()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"])
@pytest.mark.parametrize("change", ["longer", "shorter", "gone", "other"])
async def test_a_file_that_changes_is_not_two_data_sets(tmp_path, name, change):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"a": range(1000)}), path, row_group_size=100)
    else:
        text = "".join(f'{{"a": {n}}}\n' for n in range(1000)).encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    source = await open_source(path)
    batches = source.batches()
    next(batches)
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes({"longer": data + b"x", "shorter": data[:-9], "other": data}[change])
        os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=name):
        list(batches)


async def test_names_that_are_no_text(tmp_path):
    data = b'{"a": 1}\n'
    for name in (b"caf\xe9.jsonl", b"two\nlines.jsonl", b"\xff/in.jsonl"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:  # noqa: ASYNC230
            file.write(data)
        source = await open_source(os.fsdecode(path))
        assert [row.values for batch in source.batches() for row in batch] == [{"a": 1}]
        assert json.dumps(source.fingerprint, ensure_ascii=False).encode()
    assert [row.values for batch in (await open_source(tmp_path)).batches() for row in batch] == [
        {"a": 1}
    ] * 3
    assert [file.path[-8:] for file in file_source.find(f"{tmp_path}/caf*")] == ["f\udce9.jsonl"]


async def test_parquet_whose_name_is_no_text(tmp_path):
    path = f"{tmp_path}/caf\udce9.parquet"
    with open(path, "wb") as file:  # noqa: ASYNC230
        pq.write_table(pa.table({"a": [1]}), file)
    source = await open_source(path)
    assert [row.values for batch in source.batches() for row in batch] == [{"a": 1}]


async def test_recordings_are_rows_of_paths(tmp_path):
    make(tmp_path, "b.wav", "a.mp3", "notes.txt")
    source = await open_source(str(tmp_path))
    rows = [row.values for batch in source.batches() for row in batch]
    assert rows == [{"path": str(tmp_path / name)} for name in ("a.mp3", "b.wav")]
    assert [row.index for batch in source.batches(1) for row in batch] == [1]
    assert (source.rows, source.columns, source.first) == (2, ("path",), rows[0])


async def test_an_output_beside_recordings_would_take_their_place(tmp_path):
    make(tmp_path, "a.wav")
    every, some = await open_source(str(tmp_path)), await open_source(f"{tmp_path}/*.wav")
    output = str(tmp_path / "out.jsonl")
    assert every.is_touched_by_writing(output)
    assert not some.is_touched_by_writing(output)
    assert some.is_touched_by_writing(str(tmp_path / "a.wav"))
    make(tmp_path, "out.jsonl")
    assert names(tmp_path, file_source.find(str(tmp_path))) == ["out.jsonl"]


def test_links_to_directories_are_followed_once(tmp_path):
    make(tmp_path, "data/a.jsonl", "elsewhere/b.jsonl")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    once = ["data/a.jsonl", "data/more/b.jsonl"]
    assert names(tmp_path, file_source.find(str(tmp_path / "data"))) == once
    assert names(tmp_path, file_source.find(str(tmp_path / "data/**/*.jsonl"))) == once
    (tmp_path / "data" / "a").symlink_to(tmp_path / "data" / "z")
    make(tmp_path, "data/z/c.jsonl")
    found = ["data/a.jsonl", "data/more/b.jsonl", "data/z/c.jsonl"]  # not by its newer name
    assert names(tmp_path, file_source.find(str(tmp_path / "data/**/*.jsonl"))) == found


def test_a_slash_behind_two_stars_means_folders(tmp_path):
    make(tmp_path, "data/a.jsonl", "data/more/b.jsonl", "data/more/README.md")
    found = ["data/a.jsonl", "data/more/b.jsonl"]
    assert names(tmp_path, file_source.find(f"{tmp_path}/data/**/")) == found


def test_a_directory_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    make(tmp_path, "a.jsonl", "closed/b.jsonl")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="closed: Permission denied"):
        file_source.find(str(tmp_path))
    # A pattern means what it finds.
    assert names(tmp_path, file_source.find(f"{tmp_path}/**/*.jsonl")) == ["a.jsonl"]


def test_whatever_a_file_system_raises_names_the_url(monkeypatch):
    class OddError(Exception):
        pass

    def fail(*_, **__):
        raise OddError("odd")

    memory = fsspec.filesystem("memory")
    memory.pipe("/odd/a.jsonl", b'{"a": 1}\n')
    url = "memory://odd/a.jsonl"
    calls = {
        "isdir": file_source.find,
        "exists": file_source.find,
        "size": lambda url: files.DataFile(url).size(),
        "info": lambda url: files.DataFile(url).changed(),
        "cat_file": lambda url: files.DataFile(url).sample(9),
        "open": lambda url: files.DataFile(url).open(),
    }
    for method, call in calls.items():
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), method, fail)
            with pytest.raises(InputError, match=f"{url}: OddError: odd"):
                call(url)


def test_a_path_with_a_zero_byte():
    with pytest.raises(InputError, match="zero byte"):
        file_source.find("a\0.jsonl")


APART = (
    "_temporary/0/a.jsonl",
    ".hidden/a.jsonl",
    "b.csv.penstock/parts-0.jsonl",
    "c/_tmp/a.jsonl",
)


@pytest.fixture(params=["local", "file://", "memory://"])
def place(request, tmp_path):
    """A place for files, by path or URL, and what makes files in it."""
    if request.param != "memory://":

        def make_here(*names):
            make(tmp_path, *names)

        return f"{request.param.removeprefix('local')}{tmp_path}", make_here
    memory = fsspec.filesystem("memory")
    folder = f"/{tmp_path.name}"

    def make_in_memory(*names):
        for name in names:
            memory.pipe(f"{folder}/{name}", b'{"a": 1}\n')

    return f"memory:/{folder}", make_in_memory


def found_in(place, pattern):
    return [
        file.path.rpartition(f"{place.rpartition('/')[2]}/")[2]
        for file in file_source.find(pattern)
    ]


def test_hidden_folders_and_the_state_of_jobs_hold_no_data(place):
    folder, make_there = place
    make_there("a.jsonl", "c/d.jsonl", *APART)
    for pattern in (folder, f"{folder}/**/*.jsonl"):
        assert found_in(folder, pattern) == ["a.jsonl", "c/d.jsonl"]
    assert found_in(folder, f"{folder}/*/*.jsonl") == ["c/d.jsonl"]
    assert found_in(folder, f"{folder}/_temporary/*/a.jsonl") == ["_temporary/0/a.jsonl"]
    assert found_in(folder, f"{folder}/b.csv.penstock/*") == ["b.csv.penstock/parts-0.jsonl"]
    for names, found in (("_temp*", "_temporary/0/a.jsonl"), (".h*", ".hidden/a.jsonl")):
        assert found_in(folder, f"{folder}/{names}/**/a.jsonl") == [found]
    with pytest.raises(InputError, match="no file matches"):
        file_source.find(f"{folder}/*.penstock/*")


def test_a_folder_that_a_glob_matches_counts_as_its_files(place):
    folder, make_there = place
    make_there("y=1/a.jsonl", "y=2/b/c.jsonl", "y=2/notes.txt", "y=2/_SUCCESS.jsonl")
    assert found_in(folder, f"{folder}/y=*") == ["y=1/a.jsonl", "y=2/b/c.jsonl"]
    make_there(*APART)
    assert found_in(folder, f"{folder}/*") == ["y=1/a.jsonl", "y=2/b/c.jsonl"]
    assert found_in(folder, f"{folder}/_temp*") == ["_temporary/0/a.jsonl"]
    make_there("x.jsonl/0.jsonl", "w.jsonl", "v/u.jsonl")
    assert found_in(folder, f"{folder}/*.jsonl") == ["w.jsonl", "x.jsonl/0.jsonl"]
    assert found_in(folder, f"{folder}/[w-x].jsonl") == ["w.jsonl", "x.jsonl/0.jsonl"]


def test_tables_with_versions_are_no_directories_of_files(place):
    folder, make_there = place
    make_there("delta/a.parquet", "delta/_delta_log/00000000000000000000.json")
    make_there("ice/data/a.parquet", "ice/metadata/v1.metadata.json")
    for name in ("delta", "ice"):
        with pytest.raises(InputError, match="is a table of Delta Lake or Iceberg"):
            file_source.find(f"{folder}/{name}")
    assert found_in(folder, f"{folder}/delta/*.parquet") == ["delta/a.parquet"]
    make_there("lakes/d/y=1/a.parquet", "lakes/d/_delta_log/00000000000000000000.json")
    make_there("fields/i/data/a.parquet", "fields/i/metadata/v1.metadata.json")
    for pattern in ("lakes", "lakes/*", "lakes/d/*", "fields", "fields/*", "fields/i/*"):
        with pytest.raises(InputError, match=f"{pattern[:5]}.*/[di]: is a table of Delta Lake"):
            file_source.find(f"{folder}/{pattern}")
    make_there(
        "seas/metadata/page.metadata.json",
        "seas/a.parquet",
        "seas/_old/t/_delta_log/00000000000000000000.json",
    )
    assert found_in(folder, f"{folder}/seas") == ["seas/a.parquet"]


def test_magic_characters_in_a_name_at_a_url(place):
    folder, make_there = place
    make_there("a[1].jsonl", "b[2]/c.jsonl")
    assert found_in(folder, f"{folder}/a[1].jsonl") == ["a[1].jsonl"]
    assert found_in(folder, f"{folder}/b[2]") == ["b[2]/c.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "output", "read"),
    [
        ("", "out.jsonl", True),
        ("", "c/new/out.jsonl", True),
        ("", "_out.jsonl", False),
        ("", "_x/out.jsonl", False),
        ("", "../out.jsonl", False),
        ("*.jsonl", "out.jsonl", True),
        ("*.jsonl", "out.csv", False),
        ("*.jsonl", "c/out.jsonl", False),
        ("*.jsonl", "x.jsonl/out.csv", True),
        ("**/*.jsonl", "out.jsonl", True),
        ("**/*.jsonl", "b/c/out.jsonl", True),
        ("**/*.jsonl", "b/_c/out.jsonl", False),
        ("**/d.jsonl", "b/c/out.jsonl", False),
        ("a.jsonl", "a.jsonl", True),
        ("a.jsonl", "b.jsonl", False),
        ("*", "c/out.jsonl", False),
        ("e/*", "e/y=1/out.jsonl", True),
        ("e/*", "e/y=2/out.jsonl", True),
        ("e/*", "e/y=1/_out.jsonl", False),
        ("e/*", "e/_y/out.jsonl", False),
    ],
)
async def test_an_output_that_the_input_would_find(place, pattern, output, read):
    folder, make_there = place
    make_there("a.jsonl", "c/d.jsonl", "e/y=1/f.jsonl")
    source = await open_source(f"{folder}/{pattern}".rstrip("/"))
    assert source.is_touched_by_writing(f"{folder}/{output}") is read
    if folder.startswith("/"):
        assert source.is_touched_by_writing(f"file://{folder}/{output}") is read
    elif folder.startswith("file://"):
        assert source.is_touched_by_writing(f"{folder.removeprefix('file://')}/{output}") is read


def test_the_extension_of_a_url_is_that_of_its_path():
    signed = "https://b.example/data.jsonl.gz?X-Amz-Signature=a/b.csv"
    assert files.form_of(signed) == "jsonl"
    assert files.form_of(f"simplecache::{signed}") == "jsonl"
    assert files.form_of("s3://b/what?.parquet") == "parquet"


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves one body, and tells neither its length nor when it changed."""

    body = b""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.body)

    do_HEAD = do_GET

    def log_message(self, format, *args):
        pass


async def test_what_a_server_does_not_measure_is_compared_row_by_row():
    Answers.body = b'{"a": 1}\n{"a": "<a href=\'/in.jsonl/b\'>b</a>"}\n'
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/in.jsonl?signature=x"
        source = await open_source(url)
        assert source.fingerprint is None
        assert len([row for batch in source.batches() for row in batch]) == 2
        server.shutdown()
