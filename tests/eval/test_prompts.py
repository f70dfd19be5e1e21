"""Prompt sets: each benchmark's form is read, the choice from COCO is a rule, seeds depend on the
prompt alone, and a bad file is told with line and field.
"""

import json

import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.prompts import labels_of, read, seed_of


def coco_file(folder, images=40):
    """Two captions of each image, the lower annotation id second; image 7 has none."""
    held = {
        "images": [{"id": 3 * i, "file_name": f"{3 * i:012d}.jpg"} for i in range(images)],
        "annotations": [
            {"id": 1000 - (2 * i + n), "image_id": 3 * i, "caption": f"image {3 * i}\n caption {n}"}
            for i in range(images)
            for n in range(2)
            if i != 7
        ],
    }
    path = folder / "captions_val2014.json"
    path.write_text(json.dumps(held))
    return path, held


def test_coco_draws_images_by_the_seed_and_takes_the_lowest_annotation(tmp_path):
    path, _ = coco_file(tmp_path)
    everything = read(f"coco:{path}")
    assert len(everything) == 39 and "21" not in [prompt.id for prompt in everything.prompts]
    assert all(prompt.text == f"image {prompt.id} caption 1" for prompt in everything.prompts)
    # frozen: the words of PCG64(0) must never come in another order
    assert [prompt.id for prompt in everything.prompts[:6]] == FIRST
    assert read(f"coco:{path}", 10).prompts == everything.prompts[:10]
    assert read(f"coco:{path}", 10, seed=1).prompts != everything.prompts[:10]
    ascending = read(f"coco:{path}", 10, seed=None)
    assert [prompt.id for prompt in ascending.prompts] == [str(3 * i) for i in range(11) if i != 7]
    assert labels_of(everything)["file_name"][0] == f"{int(FIRST[0]):012d}.jpg"


FIRST = ["36", "9", "63", "42", "6", "66"]


def test_the_order_of_the_file_changes_nothing(tmp_path):
    path, held = coco_file(tmp_path)
    before = read(f"coco:{path}", 20)
    path.write_text(json.dumps({name: rows[::-1] for name, rows in held.items()}))
    after = read(f"coco:{path}", 20)
    assert after.prompts == before.prompts and after.sha256 == before.sha256
    assert after.file_sha256 != before.file_sha256


def test_a_list_that_others_drew_keeps_its_order(tmp_path):
    path = tmp_path / "uid_caption.csv"
    path.write_text('uid,caption\n346904_mscoco_0,"A bus, red."\n416478_mscoco_2,A cup\n')
    found = read(f"coco:{path}")
    assert [(p.id, p.text) for p in found.prompts] == [
        ("346904_mscoco_0", "A bus, red."),
        ("416478_mscoco_2", "A cup"),
    ]


def test_parti_prompts_hold_quotes(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        '"KEEP OFF" on a "sign\tWorld Knowledge\tWriting & Symbols\tno end "quote\n'
        "a cat\tAnimals\tBasic\t\r\n"
    )
    found = read(f"parti:{path}")
    assert found.texts == ['"KEEP OFF" on a "sign', "a cat"]
    assert found.by_category() == {"World Knowledge": [0], "Animals": [1]}
    assert labels_of(found)["challenge"] == ["Writing & Symbols", "Basic"]
    with pytest.raises(UserError, match="parti:FILE"):
        read(str(path))  # as a plain table its quotes are broken


def test_geneval_keeps_its_lines(tmp_path):
    row = {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "two clocks"}
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found = read(f"geneval:{path}")
    assert found.images_per_prompt == 4 and found.prompts[0].labels == row
    assert (found.prompts[0].id, found.prompts[0].category) == ("00000", "counting")


def test_compbench_files_are_categories(tmp_path):
    (tmp_path / "color_val.txt").write_text("a red book\ta hint\n\na blue cup\n")
    (tmp_path / "3d_spatial_val.txt").write_text("a cat behind a dog\n")
    (tmp_path / "color_train.txt").write_text("not this one\n")
    found = read(f"t2i-compbench:{tmp_path}")
    assert [(p.id, p.text) for p in found.prompts] == [
        ("3d_spatial/00000", "a cat behind a dog"),
        ("color/00000", "a red book"),
        ("color/00001", "a blue cup"),
    ]
    one = read(f"t2i-compbench:{tmp_path / 'color_val.txt'}", 1)
    assert one.texts == ["a red book"] and one.images_per_prompt == 10


def test_dpg_is_a_folder_of_texts(tmp_path):
    for name, text in (("10", "ten"), ("9", "nine\n"), ("posescript0", "a\npose")):
        (tmp_path / f"{name}.txt").write_text(text)
    found = read(f"dpg:{tmp_path}")
    assert [(p.id, p.text) for p in found.prompts] == [
        ("9", "nine"), ("10", "ten"), ("posescript0", "a pose"),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["txt", "tsv", "csv", "jsonl", "json"])
def test_plain_files(tmp_path, ending):
    rows = [{"prompt": "a cat", "id": "c", "category": "pets"}, {"prompt": "a cup", "id": "d"}]
    text = {
        "txt": "a cat\n\n a  cup \n",
        "tsv": "Prompt\tid\tcategory\na cat\tc\tpets\na cup\td\t\n",
        "csv": "prompt,id,category\na cat,c,pets\na cup,d,\n",
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": json.dumps(rows),
    }[ending]
    path = tmp_path / f"mine.{ending}"
    path.write_text(text)
    found = read(str(path))
    assert found.texts == ["a cat", "a cup"] and found.kind == "file"
    if ending == "txt":
        assert [p.id for p in found.prompts] == ["00000", "00002"]
    else:
        assert [p.id for p in found.prompts] == ["c", "d"]
        assert found.by_category() == {"pets": [0]}


def test_numbers_of_classes_are_no_ids_where_every_row_names_a_file(tmp_path):
    table = tmp_path / "f.csv"
    table.write_text("file,text,id,uid\nx.png,a,1,p\ny.png,b,1,q\n")
    assert [(one.id, one.labels["id"]) for one in read(str(table)).prompts] == [
        ("p", "1"),
        ("q", "1"),
    ]
    table.write_text("file,text,id\nx.png,a,1\ny.png,b,1\n")
    found = read(str(table)).prompts
    assert [one.id for one in found] == ["00000", "00001"]
    assert found[0].labels == {"file": "x.png", "id": "1"}
    table.write_text("file,text,id\nx.png,a,1\ny.png,b,2\n")
    assert [one.id for one in read(str(table)).prompts] == ["1", "2"]


def test_sets_without_a_licence_are_read_as_they_are_published(tmp_path):
    """DrawBench's table and HPSv2's lists, which do not come with the package."""
    (tmp_path / "drawbench.csv").write_text('Prompts,Category\nA red car.,Colors\n"A, B",Text\n')
    bench = read(str(tmp_path / "drawbench.csv"))
    assert bench.texts == ["A red car.", "A, B"]
    assert bench.by_category() == {"Colors": [0], "Text": [1]}
    (tmp_path / "anime.json").write_text(json.dumps(["a girl", "two\ncats "]))
    style = read(str(tmp_path / "anime.json"))
    assert style.texts == ["a girl", "two cats"] and style.prompts[1].id == "00001"
    for text, said in (
        ('["a", 1]', "no list of objects"), ("[]", "holds no prompts"), ("[", "is no JSON"),
    ):  # fmt: skip
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(UserError, match=said):
            read(str(tmp_path / "odd.json"))


def test_seeds_depend_on_the_prompt_and_the_number_alone():
    seeds = {seed_of(s, name, n) for s in (0, 1) for name in ("1", "12") for n in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "391895") == FROZEN_SEED  # images of a run depend on it
    assert seed_of(1, "2", 3) != seed_of(12, "3") and seed_of(0, "1", 23) != seed_of(0, "12", 3)


FROZEN_SEED = 1571692906037550781


@pytest.mark.parametrize(
    "spec,text,told",
    [
        ("parti", None, "write parti:PATH, where PATH is PartiPrompts.tsv of github.com"),
        ("partti:x.tsv", None, "did you mean 'parti'"),
        ("geneval:none.jsonl", None, "is not there; give prompts/evaluation_metadata.jsonl"),
        ("coco:f.json", "[]", "captions_val2014.json"),
        ("coco:f.json", '{"images": [], "annotations": [{"id": 1}]}', r"annotations\[0\] has no"),
        (
            "coco:f.json",
            '{"images": [], "annotations": [{"id": 1, "image_id": "3", "caption": "a"}]}',
            r"annotations\[0\].image_id is '3'",
        ),
        (
            "coco:f.json",
            '{"images": [], "annotations": [{"id": 1, "image_id": 3, "caption": "a"}]}',
            "captions of image 3 and no entry",
        ),
        ("parti:f.tsv", "Prompt\tCategory\n", "no column Challenge in line 1"),
        ("parti:f.tsv", "Prompt\tCategory\tChallenge\na cat\n", "in line 2"),
        ("geneval:f.jsonl", '{"tag": "colours"}\n', "line 1 has no 'prompt'"),
        (
            "geneval:f.jsonl",
            '\n{"tag": "colours", "prompt": "a", "include": []}\n',
            "line 2: tag='colours' is no task",
        ),
        ("geneval:f.jsonl", "not json\n", "line 1 is no JSON"),
        ("t2i-compbench:f.txt", "\thint\n", "no prompt before the tab in line 1"),
        ("dpg:f.txt", "a", "is a file; give the folder"),
        ("f.csv", "name\nx\n", "line 2 has no column caption or text or prompt"),
        ("f.csv", "prompt,id\na,1\nb,1\n", "has the id '1' twice"),
        ("f.csv", "file,prompt,id\nx.png,a,1\n,b,1\n", "has the id '1' twice"),
        ("f.json", '{"images": [], "annotations": [], "info": {}}', r"; give it as coco:f.json\.$"),
        ("f.csv", "prompt,id\n ,1\n", "line 2: prompt=' ' is no prompt"),
        ("f.txt", "\n", "holds no prompts"),
        ("f.png", "a", "has no ending that is known"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, monkeypatch, spec, text, told):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / spec.split(":")[-1]).write_text(text)
    with pytest.raises(UserError, match=told):
        read(spec)


def test_more_prompts_than_there_are_is_refused(tmp_path):
    path, _ = coco_file(tmp_path)
    with pytest.raises(UserError, match="has 39 prompts and 40 are asked for; give at most 39"):
        read(f"coco:{path}", 40)
    with pytest.raises(UserError, match="count=0"):
        read(f"coco:{path}", 0)
    for data, line in ((b"a cat\nna\xefve\n", 2), ("a cat\nred\n".encode("utf-16-le"), 1)):
        (tmp_path / "latin.txt").write_bytes(data)
        with pytest.raises(UserError, match=f"not UTF-8 in line {line}; save it as UTF-8 text"):
            read(str(tmp_path / "latin.txt"))
