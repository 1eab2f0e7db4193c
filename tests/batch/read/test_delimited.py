import pytest

from penstock.batch.read import open_source
from penstock.errors import InputError


async def read(path):
    source = await open_source(path)
    return source, [row for batch in source.batches() for row in batch]


async def test_with_damage(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2,b,c\n3\n\n4,\xff\n5,"e ""q"""\n')
    source, rows = await read(path)
    assert source.columns == ("id", "text")
    assert [row.values for row in rows] == [
        {"id": "1", "text": "two\nlines"},
        None,
        {"id": "3", "text": None},
        None,
        {"id": "5", "text": 'e "q"'},
    ]
    faults = [row.fault.removeprefix(str(path)) for row in rows if row.fault]
    assert faults == [":4: 3 fields where the header has 2", ":7: invalid UTF-8"]
    assert [row.values for batch in source.batches(2) for row in batch] == [
        row.values for row in rows[2:]
    ]


@pytest.mark.parametrize("header", ["a,a", "a,,", '"a",b,a'])
async def test_a_header_that_is_ambiguous(tmp_path, header):
    (tmp_path / "in.csv").write_text(f"{header}\n1,2\n")
    with pytest.raises(
        InputError, match=r"in\.csv: two columns of its header have the same name, '(a|)'"
    ):
        await open_source(tmp_path / "in.csv")


@pytest.mark.parametrize("data", ["", "\n", " \n\n\t\n", "\ufeff"])
async def test_nothing_has_no_rows(tmp_path, data):
    (tmp_path / "in.csv").write_text(data)
    source, rows = await read(tmp_path / "in.csv")
    assert (source.columns, source.first, rows) == ((), None, [])


async def test_blank_lines_before_the_header(tmp_path):
    (tmp_path / "in.csv").write_text(" \n\na,b\n1,2\n")
    source, rows = await read(tmp_path / "in.csv")
    assert source.columns == ("a", "b")
    assert [row.values for row in rows] == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_line_ends_and_a_byte_order_mark(tmp_path, end):
    (tmp_path / "in.csv").write_bytes(end.join(["\ufeffa,b", "1,é", '"x\0y",2', ""]).encode())
    source, rows = await read(tmp_path / "in.csv")
    assert source.columns == ("a", "b")
    assert [row.values for row in rows] == [{"a": "1", "b": "é"}, {"a": "x\0y", "b": "2"}]


async def test_a_quote_without_end_is_an_error_row_where_it_begins(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,x\n2,"open\n3,y\n')
    _, rows = await read(tmp_path / "a.csv")
    assert [row.values for row in rows] == [{"a": "1", "b": "x"}, None]
    assert (
        rows[1].fault == f"{tmp_path}/a.csv:3: malformed CSV: a quote that begins here has no end"
    )


async def test_a_quote_in_the_wrong_place_is_one_bad_row(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,"x"y\n2,z\n')
    _, rows = await read(tmp_path / "a.csv")
    assert [row.values for row in rows] == [None, {"a": "2", "b": "z"}]
    assert "a.csv:2: malformed CSV: a quote stands in the wrong place" in rows[0].fault


async def test_a_header_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,\xff\n1,2\n")
    with pytest.raises(InputError, match=r"a\.csv:1: invalid UTF-8"):
        await open_source(tmp_path / "a.csv")
