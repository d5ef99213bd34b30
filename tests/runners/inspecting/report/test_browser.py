"""The page in a real browser: from disk, by keyboard, in light and in dark, and on paper."""

from __future__ import annotations

import asyncio

import pytest
from PIL import Image

from llmdo.storage.runs.histories import leave_history
from tests.runners.inspecting.report.browser import browsing
from tests.runners.inspecting.report.outputs import Output, answer, failure
from tests.runners.inspecting.report.test_page import HOSTILE, run, written

pytestmark = pytest.mark.slow

SHOWN = "document.querySelectorAll('#rows > article:not([hidden])').length"
SAID = "document.getElementById('shown').textContent"
FOCUS = "document.activeElement.id || document.activeElement.tagName"


@pytest.fixture
def report(tmp_path):
    output = Output(tmp_path, {"model": "openai/m"})
    rows = [({"prompt": f"q{n}"}, answer(f"said {n}", model=f"openai/{'ab'[n % 2]}")) for n in range(20)]
    rows += [({"prompt": HOSTILE}, answer(HOSTILE)), ({"prompt": "x"}, failure(message=HOSTILE, prompt="needle x"))]
    output.file("a.jsonl", rows)
    output.file("b.jsonl", [({"prompt": "x"}, answer("Needle in b"))])
    leave_history(output.store, "", run())
    path = tmp_path / "report.html"
    path.write_text(written(output), encoding="utf-8")
    return path


def test_it_loads_from_disk_without_a_complaint_or_a_request_and_nothing_hostile_ran(report, tmp_path):
    async def look():
        async with browsing(tmp_path) as tab:
            await tab.open(report)
            assert await tab.value(SHOWN) == 23
            assert await tab.value("document.getElementById('filter').hidden") is False
            assert await tab.value("document.querySelectorAll('img, iframe, #rows script, #rows svg').length") == 0
            assert await tab.value("[...document.querySelectorAll('svg')].every((one) => one.getBBox().width > 300)")
            wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            assert await tab.value(wide)
            assert (tab.complaints, tab.asked) == ([], [report.as_uri()])
            # The page's own policy stops what would be put into it nevertheless.
            await tab.value("void (document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x'})))")
            code = (
                "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
            )
            assert await tab.value(code + "window.ran === undefined") is True
            # The browser tells of both when it comes to it.
            await tab.complains("Content Security Policy", "img-src", "script-src")

    asyncio.run(look())


def test_the_samples_are_searched_and_filtered_by_keyboard_alone(report, tmp_path):
    async def look():
        async with browsing(tmp_path) as tab:
            await tab.open(report)
            await tab.press("Tab")
            assert await tab.value("document.activeElement.className") == "skip"
            await tab.press("/", "/")
            assert await tab.value(FOCUS) == "words"
            await tab.write("needle")
            assert (await tab.value(SHOWN), await tab.value(SAID)) == (2, "2 of 23")
            await tab.press("Tab")
            assert await tab.value(FOCUS) == "outcome"
            await tab.press("e", "e")
            await tab.press("r", "r")  # errors
            assert (await tab.value("document.activeElement.value"), await tab.value(SHOWN)) == ("error", 1)
            await tab.press("Tab")
            assert await tab.value(FOCUS) == "model"
            await tab.press("Tab")
            assert await tab.value(FOCUS) == "file"
            await tab.press("b", "b")
            assert await tab.value(SHOWN) == 0
            assert await tab.value("document.getElementById('none').hidden") is False
            await tab.press("Tab")
            await tab.press("Enter", "\r")  # clear
            await tab.value("new Promise((done) => setTimeout(done))")
            assert (await tab.value(SHOWN), await tab.value(SAID)) == (23, "23 of 23")

    asyncio.run(look())


def test_a_screen_reader_is_told_what_everything_is(report, tmp_path):
    async def look():
        async with browsing(tmp_path) as tab:
            await tab.open(report)
            nodes = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
            named = [
                (one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]
            ]
            for role in ("searchbox", "combobox", "button", "link", "region", "article", "image", "heading", "table"):
                names = [name for kind, name in named if kind == role]
                assert names and all(names), (role, names)
            assert ("searchbox", "Search /") in named and ("navigation", "Sections") in named
            assert [name for kind, name in named if kind in ("main", "banner", "contentinfo")]

    asyncio.run(look())


def test_it_is_light_or_dark_as_one_likes_and_light_on_paper(report, tmp_path):
    async def look():
        async with browsing(tmp_path) as tab:
            await tab.open(report)
            background = "getComputedStyle(document.body).backgroundColor"
            axis = "getComputedStyle(document.querySelector('svg text')).fill"
            found = {}
            for scheme in ("light", "dark"):
                await tab.prefer(scheme)
                found[scheme] = (await tab.value(background), await tab.value(axis))
                await tab.picture(tmp_path / f"{scheme}.png")
            await tab.prefer("dark", "print")
            found["print"] = (await tab.value(background), await tab.value(axis))
            form = "getComputedStyle(document.getElementById('filter')).display"
            assert await tab.value(form) == "none"
            assert (await tab.send("Page.printToPDF"))["data"]
        assert found["light"] == found["print"] == ("rgb(255, 255, 255)", "rgb(27, 29, 32)")
        assert found["dark"] == ("rgb(21, 23, 26)", "rgb(230, 232, 234)")

    asyncio.run(look())
    for scheme, bright in (("light", True), ("dark", False)):
        with Image.open(tmp_path / f"{scheme}.png") as picture:
            assert picture.height > 3_000
            grey = picture.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
            assert (grey > 128) == bright


def test_without_scripts_everything_is_there(report, tmp_path):
    async def look():
        async with browsing(tmp_path) as tab:
            await tab.send("Emulation.setScriptExecutionDisabled", value=True)
            await tab.open(report)
            document = await tab.send("DOM.getDocument", depth=0)
            found = await tab.send(
                "DOM.querySelectorAll", nodeId=document["root"]["nodeId"], selector="#rows > article"
            )
            assert len(found["nodeIds"]) == 23

    asyncio.run(look())
