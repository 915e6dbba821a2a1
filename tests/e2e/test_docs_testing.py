"""The tests of docs/how-to/test-an-agent.md, run on the agent of the tutorial."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT

from perdure.store.platform_files import platform_root
from tests.docs import ROOT, blocks
from tests.support import temporary_folder

SETTINGS = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
pythonpath = .
"""


RECORDS = """\
from orders import Orders
from perdure.testing import Recorder


async def test_it(harness):
    async with harness(Orders) as h:
        run = await h.start({"item": "lamp"})
        await h.clock.advance(60)
        await run.waiting()
        await Recorder("histories").keep(await run.history())
"""


async def test_the_tests_of_the_documents_pass():
    pages = (ROOT / "docs" / "tutorial.md", ROOT / "docs" / "how-to" / "test-an-agent.md")
    with temporary_folder("docs") as folder:
        for page in pages:
            for block in blocks(page):
                if block.kind == "file":
                    (folder / block.name).write_text(block.text)
        (folder / "pytest.ini").write_text(SETTINGS)
        (folder / "test_a_record.py").write_text(RECORDS)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(platform_root())},
            stdout=PIPE,
            stderr=STDOUT,
        )
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert b"5 passed" in said
