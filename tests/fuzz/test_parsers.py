"""Parsers of texts that clients and operators write: any text is read or rejected as stated."""

import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from app.api.auth import check
from app.api.request_log import parse_traceparent
from app.api.results import NPZ, PNG
from app.api.segment import JSON, choose_media_type, parse_range
from app.errors import ArgumentError, ModelError, SettingsError, UnauthorizedError
from app.inference.model_card import read_model_folder
from app.schemas.service import CalibrateForm, SegmentQuery
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.backend import ID_PATTERN
from app.storage.folder_backend import History

RANGES = st.sampled_from(
    [JSON, PNG, NPZ, "*/*", "image/*", "text/html", "q=0", ";q=", ";q=nan", ";q=1e400", ",", ""]
)
ACCEPT = st.one_of(st.text(max_size=80), st.lists(RANGES, max_size=6).map(";".join))
VALUES = st.one_of(st.text(max_size=30), st.floats().map(str), st.integers().map(str))
TOML = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(
            ["[input]", "[output]", 'name = "a"', 'file = "model.onnx"', "classes = []", "mean = 1",
             'size = [0, -1]', 'taxonomy = "cityscapes"', "default = 2", "[[output.classes]]"]
        ), max_size=8,
    ).map("\n".join),
)  # fmt: skip


@given(ACCEPT, st.sampled_from([None, "mask"]))
def test_accept_header(text, output):
    try:
        assert choose_media_type(text, output) in (JSON, PNG, NPZ)
    except HTTPException as error:
        assert error.status_code == 406  # noqa: PT017


@given(st.text(max_size=60))
def test_media_range(text):
    kind, _weight = parse_range(text)
    assert kind == kind.strip()


@given(st.text(max_size=90))
def test_traceparent(text):
    trace = parse_traceparent(text)
    assert trace is None or re.fullmatch("[0-9a-f]{32}", trace.trace_id)


@given(st.text(max_size=60))
def test_authorization(text):
    with pytest.raises(UnauthorizedError):
        check(text, ("a token that no example draws",))


@given(st.dictionaries(st.sampled_from([*SegmentQuery.model_fields]), VALUES, max_size=4))
def test_query_of_segment(values):
    try:
        query = SegmentQuery.model_validate(values)
    except ValidationError:
        return
    assert query.min_confidence is None or 0 <= query.min_confidence <= 1
    assert query.max_error is None or 0 < query.max_error < 1


@given(st.dictionaries(st.sampled_from([*CalibrateForm.model_fields]), VALUES, max_size=4))
def test_fields_of_calibrate(texts):
    try:
        CalibrateForm.parse(texts)
    except ArgumentError as error:
        assert "expected" in str(error) or "Input" in str(error)  # noqa: PT017


@given(TOML)
def test_model_card(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("card")
    (folder / "card.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=f"^{folder.name}: "):
        read_model_folder(folder)


@given(st.binary(max_size=200))
def test_pointer_and_history(tmp_path_factory, data):
    root: Path = tmp_path_factory.mktemp("artifacts")
    (root / "tiny").mkdir()
    for name in ("active", "history.jsonl"):
        (root / "tiny" / name).write_bytes(data)
    logging.disable(logging.ERROR)  # the damage is logged
    ArtifactStore(root).recover()
    logging.disable(logging.NOTSET)
    last = History(root / "tiny" / "history.jsonl").last()
    assert last is None or isinstance(last, str)


@given(st.sampled_from(["max_pixels", "threads", "cors_origins", "log_format"]), VALUES)
def test_settings(name, value):
    try:
        load_settings(**{name: value})
    except SettingsError as error:
        assert f"SEGCAL_{name.upper()}" in str(error)  # noqa: PT017


@given(st.text(max_size=60))
def test_id_of_a_calibrator_is_no_path(text):
    assert ID_PATTERN.fullmatch(text) is None or not set(text) & set("/\\.\0")
