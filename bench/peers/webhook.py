"""A web server that reads and discards each request body, and answers 204."""

from __future__ import annotations

import argparse

from aiohttp import web


async def take(request: web.Request) -> web.Response:
    """Read the body in pieces."""
    async for _ in request.content.iter_any():
        pass
    return web.Response(status=204)


def main() -> None:
    """Read the options, and serve until a signal ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    app = web.Application(client_max_size=0)
    app.router.add_post("/", take)
    web.run_app(app, host=arguments.host, port=arguments.port, print=None)


if __name__ == "__main__":
    main()
