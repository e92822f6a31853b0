"""The smallest page that asks a server at every edit: what any page of this kind pays before it shows anything.

One field, one constant answer, one text set. Served as `gradaccum serve` serves: Starlette on uvicorn, loopback.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

PAGE = """<!DOCTYPE html>
<html lang="en">
<title>bare</title>
<input id="field" value="500" autocomplete="off">
<output id="results">16</output>
<script>
  const field = document.getElementById("field");
  field.addEventListener("input", async () => {
    const response = await fetch("live?value=" + field.value);
    document.getElementById("results").textContent = (await response.json()).steps;
  });
</script>
"""


async def page(_: Request) -> HTMLResponse:
    """The page itself."""
    return HTMLResponse(PAGE)


async def live(_: Request) -> JSONResponse:
    """What an edit asks for."""
    return JSONResponse({"steps": "16"})


def main() -> None:
    """Serve on a free port until a signal; the address is the one line of output."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    config = uvicorn.Config(
        Starlette(routes=[Route("/", page), Route("/live", live)]),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
