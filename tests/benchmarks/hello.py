"""The smallest Ray Serve application: what starting, stopping and memory are compared with."""

from __future__ import annotations

from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Hello:
    @api.get("/")
    async def hello(self) -> str:
        return "hello"


app = Hello.bind()  # type: ignore[attr-defined]
