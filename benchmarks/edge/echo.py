"""What the gateway is measured against: FastAPI with one route that gives back what it got. `echo.py PORT`."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Body(BaseModel):
    task: Any


@app.post("/echo")
async def echo(body: Body) -> Body:
    return body


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
