"""Files of annotations: CSV or JSON lines, and every mistake with its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.errors import DataError
from fedretrain.server.annotation_file import read_annotations
from fedretrain.server.annotation_store import Annotation

OUTPUTS = ("ok", "worn", "broken")
FOUND = [Annotation("pump-1", "p1", 1), Annotation("pump-2", "s 7", 2)]
CSV = "device,prediction,sample,label\npump-1,p1,,worn\npump-2,,s 7,2\n"
LINES = "\n".join(
    json.dumps(row)
    for row in (
        {"device": "pump-1", "prediction": "p1", "label": "worn"},
        {"device": "pump-2", "sample": "s 7", "label": 2, "who": "anna"},
    )
)


@pytest.mark.parametrize("text", [CSV, "\ufeff" + CSV, LINES, LINES + "\n\n", CSV + "pump-1,p1,,worn\n"])
def test_both_forms_say_the_same(text):
    assert read_annotations(text.encode(), "later", OUTPUTS) == FOUND


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe", "no text"),
        (b"", "no annotation"),
        (b"device,prediction,label\n", "no annotation"),
        (b"device,prediction,label\na,p,worn\na,q,rusty\n", "later, line 3"),
        (b"device,prediction,label\na,p,3\n", "'3' is no label"),
        (b"device,prediction,label\na,p,-1\n", "'-1' is no label"),
        (b"device,prediction,label\na,p,\n", "is no label"),
        (b"device,prediction,label\n,p,1\n", "a device or an id"),
        (b"device,label\na,1\n", "neither a prediction nor a sample"),
        (b"device,prediction,sample,label\na,p,s,1\n", "or both"),
        (b"device,prediction,label\na,p,1\na,p,2\n", "another label above"),
        (b'{"device": "a"\n', "line 1"),
        (b'{"device": "a", "prediction": "p", "label": true}\n', "True is no label"),
        (b'{"device": "a", "prediction": "p", "label": 1}\n[1]\n', "line 2"),
        (b"device,prediction,label\n" + b"a" * 201 + b",p,1\n", "a device or an id"),
    ],
)
def test_a_mistake_names_its_line(content, named):
    with pytest.raises(DataError) as caught:
        read_annotations(content, "later", OUTPUTS)
    assert named in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_the_bytes_are_it_is_read_or_refused_by_name(content):
    try:
        found = read_annotations(content, "later", OUTPUTS)
    except DataError:
        return
    assert all(0 <= one.label < len(OUTPUTS) for one in found)
