"""A board in words, figures and lines; which pages look at it; what stays of it in a saved notebook."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.views.boards import HOSTILE, NOW, bill, moments, picture, status
from tests.views.pages import page
from tuna_nb.costs.bill import Versus
from tuna_nb.deployments.board import CONNECTING, LOST, NONE, OFF, Picture
from tuna_nb.deployments.moments import Moment
from tuna_nb.views import board_face, text, timeline
from tuna_nb.views.dashboard import HIDDEN_PATIENCE_S, PATIENCE_S, Pages, face, marks, point, static_bundle

PICTURES: dict[str, Callable[[], Picture]] = {
    "whole": picture,
    "hostile": lambda: picture(HOSTILE, bill_error=HOSTILE, status=status(model=HOSTILE), link=LOST, link_error=HOSTILE),
    "nothing yet": lambda: Picture("seen", NOW),
    "no router": lambda: picture(link=NONE, moments=(), marks=(), heard_at=None),
    "no money": lambda: picture(bill=None, bill_at=None, bill_error="local can't be asked", spending=()),
    "unknown prices": lambda: picture(bill=bill(rate_usd_per_hour=None, versus=(), forecast=None)),
    "one moment": lambda: picture(moments=moments(1)),
    "figures unknown": lambda: picture(moments=tuple(Moment(NOW - 9 + second) for second in range(10))),
}  # fmt: skip


@pytest.fixture(params=PICTURES)
def seen(request: pytest.FixtureRequest) -> Picture:
    return PICTURES[request.param]()


@pytest.mark.parametrize("money_first", [False, True])
def test_what_stays_can_stand_anywhere(seen: Picture, money_first: bool) -> None:
    bundle = static_bundle(seen, money_first)
    shown = page(bundle["text/html"])
    assert "as of 20" in shown.text
    assert "live" not in shown.text, "what stays may be read years later"
    assert "\x1b" not in bundle["text/plain"]
    if seen.bill_error == HOSTILE:
        assert HOSTILE in shown.text
        assert "[bold]not markup[/bold]" in bundle["text/plain"]


def test_what_stays_is_small() -> None:
    assert len(json.dumps(static_bundle(picture(moments=moments(300), at=NOW)))) < 60_000


def test_the_page_gets_plain_json(seen: Picture) -> None:
    sent = {"face": face(seen, False), "all": [point(m) for m in seen.moments], "marks": marks(seen)}
    assert json.loads(json.dumps(sent, allow_nan=False)) == sent


def test_every_frontend_has_the_same_figures(seen: Picture) -> None:
    told, in_text = face(seen, False), text.render(board_face.sheet(seen), width=1000)
    for tile in told["tiles"]:
        assert tile["label"] in in_text
        assert tile["value"] in in_text
    for row in told["rows"]:
        assert all(cell in in_text for cell in row)
        assert len(row) == len(told["columns"])


def values(p: Picture) -> dict[str, str]:
    return {tile.label: f"{tile.value} {tile.note}".strip() for tile in board_face.tiles(p)}


def test_the_saving_is_against_the_best_other_policy() -> None:
    assert values(picture())["saved"] == "50% against on-demand only, $1.40 for the same traffic"
    dearer = picture(bill=bill(versus=(Versus("serverless only", 0.5), Versus("on-demand only", 9.0))))
    assert values(dearer)["could be saved"] == "29% by serverless only, $0.500 for the same traffic"
    straw = picture(bill=bill(versus=(Versus("spot only", 0.5, unserved=3), Versus("serverless only", 1.4))))
    assert "serverless only" in values(straw)["saved"], "what could not have served all is no alternative"
    unknown = picture(bill=bill(versus=(Versus("spot only", None, "why"),)))
    assert not {"saved", "could be saved"} & values(unknown).keys()


def test_unknown_is_unknown_and_not_nothing() -> None:
    assert values(picture(bill=bill(rate_usd_per_hour=None)))["per hour now"] == "unknown"
    asked = values(picture(bill=None, bill_error="local can't be asked"))
    assert asked["spent"] == "unknown not known: local can't be asked"
    assert values(picture(moments=(Moment(NOW),)))["first token p50"] == "– p95 –"


def test_what_was_answered_in_all_does_not_begin_anew_with_a_router() -> None:
    now = Moment(
        NOW, totals={"finished": 7, "failed": 0, "resumed": 3}, running={"spot": 4}, states={"spot": "READY"}
    )
    assert values(picture(moments=(now,)))["answered in all"] == "100 3 resumed, 5s ago"
    alone = values(picture(moments=(now,), bill=None))
    assert alone["answered"] == "7 3 resumed, since the router began"
    assert board_face.shares(picture(moments=(now,)))[0].row[4] == "4"


def test_money_comes_first_where_it_is_asked_for() -> None:
    assert [t.money for t in board_face.tiles(picture(), money_first=True)][:4] == [True] * 4
    assert [t.money for t in board_face.tiles(picture())][-1]


@pytest.mark.parametrize(
    ("change", "tone", "words"),
    [
        ({}, "good", "live"),
        ({"heard_at": NOW - 8}, "busy", "live; the figures are 8s old"),
        ({"link": LOST, "link_error": "no answer", "heard_at": NOW - 75}, "bad",
         "the router can't be reached; the figures are 1m 15s old: no answer"),
        ({"link": CONNECTING, "heard_at": None}, "busy", "asking the router"),
        ({"link": OFF}, "plain", "stopped"),
        ({"link": OFF, "over": True}, "plain", "destroyed"),
    ],
)  # fmt: skip
def test_it_says_whether_what_it_shows_is_of_now(change: dict[str, Any], tone: str, words: str) -> None:
    assert board_face.link(picture(**change)) == (tone, words)


def test_a_sentence_says_it_all() -> None:
    assert board_face.summary(picture()) == (
        "seen is running. 6.0 requests per second, answered by serverless 5% and spot 95%; "
        "first token in 40 ms, p95 100 ms. $1.02 per hour, $0.840 so far."
    )


def test_replicas_are_told_by_their_state() -> None:
    rows = {share.name: share.row for share in board_face.shares(picture())}
    assert rows["spot"][3] == "1 ready, 1 starting"
    assert rows["serverless"][3] == "1 ready"


def test_a_line_is_cut_where_nothing_is_known_and_where_nobody_looked() -> None:
    line = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 4.0), (30.0, 5.0)]
    assert timeline.pieces(line) == [[(0.0, 1.0), (1.0, 2.0)], [(3.0, 4.0)], [(30.0, 5.0)]]


def test_the_drawing_has_a_text_for_who_cannot_see_it() -> None:
    drawn = timeline.drawing(picture())
    assert "6.0 to 6.0 requests per second; time to first token, p95, 100 ms to 900 ms; 1 preemption;" in drawn
    assert drawn.count("taken away") == 1
    assert timeline.drawing(picture(moments=())) == ""


# -- who looks --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pages(clock: Clock) -> Pages:
    return Pages(clock)


def silent(pages: Pages, clock: Clock, seconds: float) -> bool:
    """Whether a page is there still after so long."""
    clock.now += seconds
    pages.forget()
    return bool(pages)


def test_a_page_is_there_until_it_closes(pages: Pages) -> None:
    assert not pages
    pages.heard("a", "open")
    pages.heard("b", "open")
    pages.heard("a", "close")
    assert pages
    pages.heard("b", "close")
    assert not pages


def test_a_page_that_says_nothing_is_gone_in_a_quarter_of_a_minute(pages: Pages, clock: Clock) -> None:
    pages.heard("a", "open")
    for _ in range(10):
        assert silent(pages, clock, PATIENCE_S)
        pages.heard("a", "beat")
    assert PATIENCE_S < 15
    assert not silent(pages, clock, PATIENCE_S + 0.1)
    pages.heard("a", "beat")
    assert pages, "one that is heard again was not gone"


def test_a_hidden_page_speaks_once_a_minute(pages: Pages, clock: Clock) -> None:
    pages.heard("a", "open")
    pages.heard("a", "hidden")
    assert silent(pages, clock, HIDDEN_PATIENCE_S)
    assert not silent(pages, clock, 1)


def test_while_a_cell_runs_silence_says_nothing(pages: Pages, clock: Clock) -> None:
    pages.heard("a", "open")
    pages.busy(True)
    assert silent(pages, clock, 3600)
    pages.busy(False)
    assert silent(pages, clock, PATIENCE_S)
    assert not silent(pages, clock, 1)
