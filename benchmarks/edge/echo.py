"""What the gateway is measured against: FastAPI with a route that gives back what it got, and one that streams four
events. `echo.py PORT`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()


class Body(BaseModel):
    task: Any


@app.post("/echo")
async def echo(body: Body) -> Body:
    return body


@app.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(events(), media_type="text/event-stream")


async def events() -> AsyncIterator[str]:
    for number in range(4):
        yield f'id: {number}\nevent: note\ndata: {{"seq": {number}}}\n\n'


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
