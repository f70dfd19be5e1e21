"""Tables: whatever text a format can carry comes back as it was, and a row that can't be used costs
no other one.
"""

import csv
import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_jax.data.table import read_table
from t2i_jax.errors import UserError

_TEXT = st.text(max_size=30) | st.text("\x1c\x85\u2028\x0c\x0b\0\r\n\",;\t 'a", max_size=12)
_ENDS = st.sampled_from(["\n", "\r\n"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def table(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    return read_table(path)


def _can_carry(cell, quoted):
    """Without quotes, a carriage return before a line feed ends the row with it."""
    return quoted or not cell.endswith("\r")


@given(st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=5), _ENDS, st.booleans())
@pytest.mark.parametrize(
    "name, delimiter",
    [("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";"), ("c.csv", "|"), ("d.csv", "\t")],
)
def test_any_text_comes_back_from_csv(folder, name, delimiter, rows, end, quote):
    rows = [row for row in rows if all(_can_carry(cell, quote) for cell in row)]
    written = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("file", "text"), *rows])
    found = [
        (row.values["file"], row.values["text"]) for row in table(folder, name, written.getvalue())
    ]
    assert found == [row for row in rows if any(cell.strip() for cell in row)]


@given(st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=5), _ENDS, st.booleans())
def test_any_text_comes_back_from_json(folder, rows, end, ascii_only):
    objects = [{"file": name, "text": text} for name, text in rows]
    lines = "".join(json.dumps(one, ensure_ascii=ascii_only) + end for one in objects)
    assert [row.values for row in table(folder, "a.jsonl", lines)] == objects
    assert [row.values for row in table(folder, "a.json", json.dumps(objects))] == objects


@given(st.binary(max_size=80) | st.text('a,"\n\r{}[]:;\t', max_size=40).map(str.encode))
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv", "a.json"])
def test_no_bytes_are_a_stack_trace(folder, name, data):
    for head in (b"", b"file,text\n", b"file\ttext\n"):
        try:
            rows = table(folder, name, head + data)
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith("captions=")
        else:
            assert all(bool(row.values) != bool(row.reason) for row in rows if row.values != {})


def test_a_quoted_line_break_does_not_end_a_row(folder):
    rows = table(folder, "a.csv", 'file,text\na.png,"a red\ncircle"\r\nb.png,"two\r\nlines"\n')
    assert [row.values["text"] for row in rows] == ["a red\ncircle", "two\r\nlines"]
    assert [row.line for row in rows] == [2, 4]


@pytest.mark.parametrize("name, mark", [("a.csv", ","), ("a.tsv", "\t")])
def test_more_cells_than_columns_are_refused_with_the_line(folder, name, mark):
    text = f"file{mark}text\na.png{mark}fine\nb.png{mark}a cat{mark} sitting on a mat\n"
    with pytest.raises(UserError, match="has 3 cells for 2 columns in line 3; put a caption that"):
        table(folder, name, text)
    # what a spreadsheet leaves at the end of a row is nothing, and columns without a name at the
    # end of the first one hold nothing
    assert len(table(folder, name, f"file{mark}text\na.png{mark}fine{mark}{mark} \n")) == 1
    for empty in (mark, f"{mark} {mark}"):
        with pytest.raises(UserError, match="has [34] cells for 2 columns in line 3; put a capt"):
            table(folder, name, text.replace("text\n", f"text{empty}\n"))
    rows = table(folder, name, f"{mark}file{mark}{mark}\n0{mark}a.png{mark}\n")
    assert [row.values for row in rows] == [{"": "0", "file": "a.png"}]


def test_a_row_that_cannot_be_used_costs_no_other_one(folder):
    long = "word" * 40_000
    rows = table(
        folder,
        "a.csv",
        f'file,text\na.png,one\nb.png,"never closed\nc.png,three\nd.png,{long}\ne.png,"x"y\n'
        f"f.png,caf\udce9\ng.png\n\nh.png,{'x' * 10_000_000}\n"
        f'i.png,"{"y" * 200_000}\n"\nz.png,last\n',
    )
    said = [(row.line, row.reason) for row in rows if row.reason]
    cell = "row with a cell of more than 131072 characters"
    assert said == [
        (3, "row with broken quotes"),
        (5, cell),
        (6, "row with broken quotes"),
        (10, cell),
        (11, cell),
    ]
    used = [(row.values["file"], row.values.get("text")) for row in rows if not row.reason]
    assert used == [
        ("a.png", "one"),
        ("c.png", "three"),
        ("f.png", "caf\udce9"),
        ("g.png", None),
        ("z.png", "last"),
    ]
    lines = ['{"file": "a"}', "[" * 100_000, '{"n": ' + "9" * 5000 + ', "file": "b"}', "{", "3"]
    lines += ['{"file": "' + "w" * 10_000_000 + '"}', '{"file": "c", "text": "a\x1c\x0cb"}']
    rows = table(folder, "a.jsonl", "\n".join(lines))
    assert [row.line for row in rows if row.reason] == [2, 4, 5, 6]
    assert [row.values["file"] for row in rows if not row.reason] == ["a", "b", "c"]


def test_forms_that_other_programs_write(folder):
    wanted = [{"file": "a.png", "text": "caf\xe9 \u732b"}]
    words = "File; Text\r\na.png;caf\xe9 \u732b\r\n"
    for data in (words.encode("utf-16"), words.encode("utf-8-sig"), words.encode()):
        assert [row.values for row in table(folder, "a.csv", data)] == wanted
    for data in ({"a.png": {"text": "caf\xe9 \u732b"}}, wanted):
        assert [row.values for row in table(folder, "a.json", json.dumps(data))] == wanted
    assert table(folder, "a.json", '{"a.png": "words"}')[0].values["caption"] == "words"
    assert [row.values["caption"] for row in table(folder, "a.json", '["a", "b"]')] == ["a", "b"]
    for ending in ("\n", "\r\n", " \r\n"):
        tabbed = f"sep=\t{ending}{words.replace('; ', ';').replace(';', chr(9))}"
        assert [row.values for row in table(folder, "a.csv", tabbed)] == wanted
    odd = words.encode("utf-16-le").replace("\u732b".encode("utf-16-le"), b"\x00\xd8")
    for data in (odd, odd[:-3]):  # half a letter, and half a code
        rows = table(folder, "a.csv", b"\xff\xfe" + data)
        assert rows[0].values["text"].startswith("caf\xe9 \udcff")
    for text in (f"sep=;\r\n{words}", f"\ufeff\ufeff{words}"):
        assert [row.values for row in table(folder, "a.csv", text.encode("utf-8-sig"))] == wanted


def test_spaces_around_a_quoted_cell_are_none_of_it(folder):
    lines = ["file, text", 'a.png, "a cat, sitting"', ' b.png,   "two', 'lines"', " c.png, kept "]
    lines += ['d.png, "open', 'e.png, 5" wide', '"f.png"," ""kept"""', 'g.png, "after" x']
    lines += [
        'h.png,"broken" x',
        "i.png, last",
        '"j.png" , "a ""dog"" , sitting"  ',
        '"k.png" ,open"',
    ]
    rows = table(folder, "a.csv", "\n".join(lines))
    assert [(row.line, row.reason) for row in rows if row.reason] == [
        (line, "row with broken quotes") for line in (6, 9, 10)
    ]
    assert [tuple(row.values.values()) for row in rows if not row.reason] == [
        ("a.png", "a cat, sitting"),
        (" b.png", "two\nlines"),
        (" c.png", " kept "),
        ("e.png", ' 5" wide'),
        ("f.png", ' "kept"'),
        ("i.png", " last"),
        ("j.png", 'a "dog" , sitting'),
        ("k.png", 'open"'),
    ]


def test_a_row_with_a_column_twice_is_told(folder):
    lines = ['{"file": "a", "text": "x", "text": "y"}', '{"file": "b", "Text": "x", "text": "y"}']
    lines += ['{"file": "c", "text": "x", "more": {"a": 1, "a": 2}}']
    rows = table(folder, "a.jsonl", "\n".join(lines))
    assert [row.reason for row in rows] == [*["row with a column twice"] * 2, ""]
    assert table(folder, "a.json", f"[{lines[1]}]")[0].reason == "row with a column twice"


def test_an_odd_entry_of_a_json_file_costs_no_other_one(folder):
    odd = ['"score": NaN', '"n": ' + "9" * 5000, '"x": {"a": 1, "a": 2}', '"e": 1e999']
    odd += ['"text": "tab\tin it"', '"text": "caf\udce9"', '"deep": ' + "[" * 200 + "]" * 200]
    entries = [f'{{"file": "{i}", {one}}}' for i, one in enumerate(odd)]
    entries += ['{"file": "x", "text": "y", "text": "z"}', "null", '"words"']
    rows = table(folder, "a.json", f"[{', '.join(entries)}]")
    assert [row.values["file"] for row in rows[:-3]] == list("0123456")
    assert [row.reason for row in rows[-3:]] == [
        "row with a column twice", *["row that is no JSON object"] * 2,
    ]  # fmt: skip
    rows = table(folder, "a.json", '{"a": "one", "b": {"text": "x", "text": "y"}, "a": "two"}')
    assert [row.values.get("caption") for row in rows] == ["one", None, "two"]
    assert [row.reason for row in rows] == ["", "row with a column twice", ""]
    assert table(folder, "a.json", "[]") == table(folder, "a.json", "{}") == []
    assert table(folder, "a.json", '{"a": {"file": "b", "text": "x"}}')[0].values["file"] == "b"


@pytest.mark.parametrize("name, data, says", [
    ("a.csv", "", "no names of columns"),
    ("a.csv", "file,text\rb,c\rd,e\r", "carriage returns alone"),
    ("a.csv", "file,text,text\n", "the column 'text' twice"),
    ("a.json", "3", "is no list of objects"),
    ("a.json", "[3]", "is no list of objects"),
    ("a.json", '{"images": [{"id": 1}], "x": 2}', r"an object of lists \(images\), as COCO"),
    ("a.csv", "file,text\na,b\n".encode("utf-16-le"), "can't be read as UTF-8 text"),
    ("a.csv", "file,text\na,b\n".encode("utf-32"), "can't be read as UTF-8 text"),
    ("a.json", "[" * 100_000, "is no JSON"),
])  # fmt: skip
def test_what_is_no_table_is_refused(folder, name, data, says):
    with pytest.raises(UserError, match=says) as caught:
        table(folder, name, data)
    assert "\n" not in str(caught.value)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to("/dev/zero")
    with open(tmp_path / "c.csv", "wb") as file:
        file.truncate(100 * 2**30)
    says_of = {"a": "no regular file", "b": "no regular file", "c": "107374182400 bytes"}
    for name, says in says_of.items():
        with pytest.raises(UserError, match=says):
            read_table(tmp_path / f"{name}.csv")
